"""A stored model: a directory in Hugging Face's format, or a GGUF file.

Both are opened by `open_model` and used alike: config, tensors, tokenizer.
"""

import dataclasses
import pathlib
from typing import Protocol

from jaxpeft.checkpoints import gguf_file, gguf_tokenizer, hf
from jaxpeft.checkpoints.gguf_reader import GGUFReader, is_gguf
from jaxpeft.checkpoints.reader import SafetensorsReader, TensorReader
from jaxpeft.data import tokenizer as tokenizers
from jaxpeft.transformer.config import ModelConfig


class StoredModel(Protocol):
  """What both kinds offer. Weights are not touched before `reader` is called."""

  @property
  def config(self) -> ModelConfig:
    """The architecture."""
    ...

  def reader(self) -> TensorReader:
    """Of the weights, under Hugging Face's names."""
    ...

  def tokenizer(self, eos_ids: tuple[int, ...]) -> tokenizers.Tokenizer:
    """The tokenizer; `eos_ids` are further ids that end a text."""
    ...


@dataclasses.dataclass(frozen=True)
class HFDirectory:
  """A directory in Hugging Face's format."""

  directory: pathlib.Path
  config: ModelConfig

  def reader(self) -> TensorReader:
    return SafetensorsReader(self.directory)

  def tokenizer(self, eos_ids: tuple[int, ...]) -> tokenizers.Tokenizer:
    return tokenizers.load(self.directory, eos_ids)


@dataclasses.dataclass(frozen=True)
class GGUFFile:
  """A GGUF file, or the parts of a split one."""

  file: gguf_file.File
  config: ModelConfig

  def reader(self) -> TensorReader:
    return GGUFReader(self.file)

  def tokenizer(self, eos_ids: tuple[int, ...]) -> tokenizers.Tokenizer:
    files = gguf_tokenizer.files(self.file.meta, self.file.place)
    return tokenizers.from_files(files, self.file.place, eos_ids)


def open_model(path) -> StoredModel:
  """The model in a directory or GGUF file.

  Raises:
    InputError: it is damaged, or not supported.
  """
  if is_gguf(path):
    file = gguf_file.read(path)
    return GGUFFile(file, hf.config_of_gguf(file))
  return HFDirectory(pathlib.Path(path), hf.read_config(path))
