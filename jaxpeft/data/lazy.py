"""A sequence whose items are made when they are asked for."""

import abc
import operator
from collections.abc import Sequence
from typing import Any


class Lazy(Sequence):
  """A subclass defines `__len__` and `item`; slices are lists of items."""

  @abc.abstractmethod
  def item(self, at: int) -> Any:
    """The item at a place from 0."""

  def __getitem__(self, at) -> Any:
    if isinstance(at, slice):
      return [self.item(i) for i in range(*at.indices(len(self)))]
    place = operator.index(at)
    place += len(self) * (place < 0)
    if not 0 <= place < len(self):
      raise IndexError(f"place {at} of {len(self)}")
    return self.item(place)
