"""Finds the rows that a config names: an embedded task, files, a data set of the hub.

A source is found first and read later, row by row, so that its rows need not fit into
memory.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxpeft.data import (
  budget,
  columns,
  files,
  fingerprint,
  formats,
  hub,
  plan_makers,
  prices,
  sums,
  toy,
  tries,
)
from jaxpeft.data.files import Placed
from jaxpeft.errors import InputError

LARGE = 2**20  # bytes of files from which on they are streamed, and their tokens kept
_FIRST = 200  # rows of a large source that are checked before it is tokenized

prompt_and_completion = formats.prompt_and_completion


@dataclasses.dataclass(frozen=True)
class Source:
  """Where rows are from.

  Attributes:
    name: as in the config, for messages.
    files: in the order in which they are read; () if the rows are not from files.
    rows: gives the rows, if they are not from files.
    columns: our field -> column of the files, see `columns.mapped`; {} is as they are.
    checked: (row, place) -> anything; raises InputError for a bad row.
  """

  name: str
  files: tuple[pathlib.Path, ...] = ()
  rows: Any = None
  columns: dict = dataclasses.field(default_factory=dict)
  checked: Callable = formats.checked

  def placed(self, limit: int | None = None) -> Iterator[Placed]:
    """The rows one after another, mapped, at most `limit`; `formats` checks them.

    Raises:
      InputError: the files cannot be read, or have no row.
    """
    count = 0
    for row in self._all():
      if limit is not None and count >= limit:
        return
      count += 1
      yield row._replace(row=columns.mapped(row.row, self.columns, row.place))
    if not count:
      raise InputError(f"{self.name} has no rows")

  def read(self, limit: int | None = None) -> list[dict]:
    """The rows as a list; each row is checked.

    Raises:
      InputError: a row is invalid; the message gives its line.
    """
    rows = []
    for place, row, _ in self.placed(limit):
      if self.files:
        self.checked(row, place)
      rows.append(row)
    return rows

  def check(self):
    """Raises InputError if the files cannot be read or one of the first rows is bad."""
    if self.files:
      self.read(_FIRST if self.large else None)

  def stamps(self) -> list[tuple[int, int]]:
    """(size, time of the last change) of every file.

    Raises:
      InputError: a file is gone.
    """
    try:
      stats = [path.stat() for path in self.files]
    except OSError as e:
      raise InputError(f"cannot read the data file {e.filename!r}: {e}") from e
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

  @property
  def size(self) -> int:
    """Bytes of all files."""
    return sum(size for size, _ in self.stamps())

  @property
  def large(self) -> bool:
    """Whether it is better not to hold the rows in memory."""
    return self.size >= LARGE

  @property
  def slow(self) -> bool:
    """Whether making tokens takes long enough to keep them in files."""
    return self.large or self.name.startswith("embedded:")

  @functools.cached_property
  def digest(self) -> str:
    """The hash of the files' content; "" for rows that are not from files.

    Raises:
      InputError: a file cannot be read.
    """
    return fingerprint.of_files(self.files) if self.files else ""

  def _all(self) -> Iterable[Placed]:
    if self.rows is not None:
      for number, row in enumerate(self.rows(), 1):
        yield Placed(f"{self.name}, row {number}", row, 0.0)
    for number, path in enumerate(self.files):
      for row in files.read(path):
        yield row._replace(share=(number + row.share) / len(self.files))


def find(source, columns=None, checked: Callable = formats.checked) -> Source:
  """The source that a config names. A file that is there counts before the hub.

  Args:
    source: "embedded:NAME" (see `embedded`); the path of a file (see `files.read`); a
      pattern of paths with * or ?, whose files are read in the order of their names; a
      data set of the hub (see `hub`); or a list of rows.
    columns: our field -> column, of files only.
    checked: what refuses bad rows of files, e.g. an objective's `checked`.
  Raises:
    InputError: there is no such source.
  """
  if not isinstance(source, str | pathlib.Path):
    rows = list(source)
    return Source("data", rows=lambda: rows)
  name, columns = str(source), dict(columns or {})
  formats.check_columns(columns)
  if name.startswith("embedded:"):
    return Source(name, rows=_embedded(name.removeprefix("embedded:")))
  try:
    paths = _local(name)
  except (OSError, ValueError) as e:  # a path with NUL is a ValueError
    raise InputError(f"cannot read the data file {name!r}: {e}") from e
  if not paths and hub.parse(name):
    paths = hub.files(name)
  if not paths:
    raise InputError(
      f"cannot read the data file {name!r}: there is no such file, and it is no data "
      "set of the hub, org/name[@revision][:config][[split]]"
    )
  return Source(name, tuple(paths), columns=columns, checked=checked)


def read(source, limit: int | None = None, columns=None) -> list[dict]:
  """The rows of a source, see `find`.

  Args:
    limit: number of rows to read, from the start; None reads all.
  Raises:
    InputError: there is no such source, it has no rows, or a row is invalid; the
      message gives the line's number.
  """
  return find(source, columns).read(limit)


def embedded(name: str) -> list[dict]:
  """The rows of an embedded data set.

  Args:
    name: "one_step", "two_step", "budget", "sums", "prices", "prices_pairs", "trip",
      "meeting" or "calendar" with "/train" or "/test"; or "pretrain".
  Raises:
    InputError: there is no data set of that name.
  """
  return _embedded(name)()


def _embedded(name: str):
  """The function that generates an embedded data set."""
  if name == "pretrain":
    return lambda: (
      toy.problems(1, "train", 120_000, seed=0) + toy.sums("train", 40_000, seed=0)
    )
  steps, _, split = name.partition("/")
  sizes = {"train": 8_000, "test": 1_000}
  kinds: dict[str, tries.Problem] = {"budget": budget, "sums": sums}
  makers = plan_makers.MAKERS
  made = ("prices", "prices_pairs", *kinds, *makers)
  if steps not in ("one_step", "two_step", *made) or split not in sizes:
    raise InputError(
      f"unknown embedded data {name!r}; known: pretrain, and one_step, two_step, "
      f"{', '.join(made[:-1])} or {made[-1]} with /train or /test"
    )
  if steps.startswith("prices"):
    return lambda: prices.rows(steps, split)
  if steps in makers:
    return lambda: plan_makers.rows(steps, split, sizes[split])
  if steps in kinds:
    count = {"train": 30_000, "test": 1_000}[split]
    return lambda: tries.rows(kinds[steps], split, count, seed=0)
  return lambda: toy.problems(1 + (steps == "two_step"), split, sizes[split], seed=0)


def _local(name: str) -> list[pathlib.Path]:
  """The files that a path or a pattern names; [] if there are none."""
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    inside = sorted(x.name for x in path.iterdir() if files.known(x.name))
    shown = ", ".join(inside[:8]) or "none that could be data"
    raise InputError(
      f"{name!r} is a directory; name a file in it, or several as {path}/*.jsonl. "
      f"Files: {shown}"
    )
  if path.exists():
    return [path]
  if not any(x in name for x in "*?"):
    return []
  root = pathlib.Path(path.anchor)
  found = root.glob(str(path.relative_to(root) if path.anchor else path))
  return sorted(x for x in found if x.is_file())
