"""Reads rows from files one after another: JSONL, JSON, CSV, TSV, parquet, and gzip.

A file's rows need not fit into memory, and no file can fill it: the length of a line,
the size of a JSON list and the ratio of compression have limits.
"""

import csv
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxpeft import optional
from jaxpeft.errors import InputError

_LINE = 16 * 2**20  # bytes of a line, or of a field of a CSV file
_LIST = 64 * 2**20  # bytes of a JSON list
_RATIO = 200  # of gzip; ordinary text has less than 20
_START = 1000  # first bytes of a JSON file, which show its layout
_NAMED = re.compile(rb'\{\s*"[^"\\]*"\s*:\s*\{')  # an object whose values are objects
_HOLDERS = ("data", "rows", "examples", "train", "validation", "test")
_WRAPPED = re.compile(
  rb"\{\s*(\n|\"(%s)\"\s*:\s*\[)" % b"|".join(name.encode() for name in _HOLDERS)
)  # an object over several lines, or one that holds the rows


class Placed(NamedTuple):
  """A row that knows where it is."""

  place: str  # for error messages, e.g. "FILE, line 3"
  row: Any  # not checked; usually a dict
  share: float  # of the file that has been read, from 0 to 1


def read(path: pathlib.Path) -> Iterator[Placed]:
  """The rows of a file; the end of its name says which format it has.

  .jsonl, .ndjson and unknown ends are JSON, a line a row; .json may also be a list of
  rows, or an object {name: row}; .csv and .tsv have a header; .parquet needs pyarrow.
  All but parquet may be compressed (.gz).

  Raises:
    InputError: the file cannot be read, or a line of it is invalid.
  """
  try:
    yield from _READERS.get(ending(path), _jsonl)(path)
  except (OSError, EOFError, zlib.error) as e:
    raise InputError(f"cannot read the data file {str(path)!r}: {e}") from e


def ending(path: pathlib.PurePath) -> str:
  """The end of a file's name that says its format, without .gz."""
  name = path.name.lower()
  return pathlib.PurePath(name.removesuffix(".gz")).suffix


def known(name: str) -> bool:
  """Whether the end of a name says that it is a file of rows."""
  return name.endswith(".gz") or ending(pathlib.PurePath(name)) in _READERS


def _lines(path: pathlib.Path) -> Iterator[tuple[int, float, str]]:
  """(number, share read, text) of every line, which keeps its end.

  Raises:
    InputError: a line is too long or not UTF-8, or the compression is absurd.
  """
  size, seen = max(path.stat().st_size, 1), 0
  packed = path.name.lower().endswith(".gz")
  with open(path, "rb") as raw:
    source: Any = gzip.GzipFile(fileobj=raw) if packed else raw
    number = 0
    while line := source.readline(_LINE + 1):
      number, seen = number + 1, seen + len(line)
      place = f"{path}, line {number}"
      if len(line) > _LINE:
        raise InputError(f"{place}: is longer than {_LINE} bytes; split the row")
      if packed and seen > _RATIO * (size + 2**20):
        raise InputError(
          f"{place}: the file has grown to over {_RATIO} times its compressed size, "
          "which no text does; unpack and check it"
        )
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
      except UnicodeDecodeError as e:
        raise InputError(f"cannot read the data file {place}: not UTF-8: {e}") from e
      yield number, min(1.0, raw.tell() / size), text


def _loads(text: str, place: str):
  try:
    return json.loads(text)
  except RecursionError as e:
    raise InputError(f"{place}: nested too deeply") from e
  except ValueError as e:  # also a number of over 4300 digits
    raise InputError(f"{place}: not JSON: {_why(e, text.rstrip())}") from e


def _why(error: ValueError, text: str) -> str:
  """What is wrong with a text that is not JSON."""
  if not isinstance(error, json.JSONDecodeError):
    return str(error)
  if error.pos < len(text):
    where = f"line {error.lineno}, " if "\n" in text else ""
    return f"{error.msg} at {where}character {error.colno}"
  return (
    f"{error.msg} at its end. A row must be in one line, unless the file is a list "
    '[...] or {"data": [...]} whose name ends in .json'
  )


def _jsonl(path: pathlib.Path) -> Iterator[Placed]:
  for number, share, line in _lines(path):
    if line.strip():
      place = f"{path}, line {number}"
      row = _loads(line, place)
      if isinstance(row, list):
        raise InputError(
          f"{place}: holds a list, not a row; if the file is one JSON list of rows, "
          "name it .json"
        )
      yield Placed(place, row, share)


def _json(path: pathlib.Path) -> Iterator[Placed]:
  """A list of rows, an object of rows by their names or around a list, or lines."""
  opener = gzip.open if path.name.lower().endswith(".gz") else open
  with opener(path, "rb") as f:
    start = f.read(_START).removeprefix(b"\xef\xbb\xbf").lstrip()
    whole = _NAMED.match(start) or _WRAPPED.match(start)
    f.seek(0)
    text = f.read(_LIST + 1) if whole or start.startswith(b"[") else b""
  rows = _rows(text) if whole else {}
  if rows:
    for number, (name, row) in enumerate(rows.items(), 1):
      yield Placed(f"{path}, row {name}", row, number / len(rows))
    return
  if not start.startswith(b"["):
    yield from _jsonl(path)
    return
  if len(text) > _LIST:
    raise InputError(
      f"{path} is a JSON list of more than {_LIST} bytes; write it as JSONL, a line a "
      "row, e.g. with jq -c '.[]'"
    )
  try:
    rows = _loads(text.decode("utf-8-sig"), str(path))
  except UnicodeDecodeError as e:
    raise InputError(f"cannot read the data file {path}: not UTF-8: {e}") from e
  for number, row in enumerate(rows, 1):
    yield Placed(f"{path}, row {number}", row, number / len(rows))


def _rows(text: bytes) -> dict:
  """{name or number: row} of a JSON object {name: row} or {"data": rows}.

  {} if the text is no such object; an object over several lines may be one row.
  """
  try:
    found = json.loads(text) if len(text) <= _LIST else {}
  except (ValueError, RecursionError):  # several lines, an object each
    return {}
  if not isinstance(found, dict) or not found:
    return {}
  if all(isinstance(row, dict) for row in found.values()):
    return {repr(name[:80]): row for name, row in found.items()}
  held = [found[name] for name in _HOLDERS if isinstance(found.get(name), list)]
  if len(held) == 1:
    return dict(enumerate(held[0], 1))
  return {1: found} if b"\n" in text.strip() else {}


def _csv(path: pathlib.Path) -> Iterator[Placed]:
  """Rows of a table with a header; every value is a text."""
  delimiter = _delimiter(path)
  number, share = 0, 0.0

  def texts():
    nonlocal number, share
    for number, share, text in _lines(path):  # noqa: B007  (they are read outside)
      yield text

  csv.field_size_limit(max(_LINE, csv.field_size_limit()))  # of the whole process
  try:
    table = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] = next(table, [])
    if len(set(header)) < len(header):
      twice = next(x for x in header if header.count(x) > 1)
      raise InputError(f"{path}, line 1: two columns are named {twice!r}")
    for values in table:
      if not values:
        continue
      place = f"{path}, line {number}"
      if len(values) != len(header):
        raise InputError(
          f"{place}: has {len(values)} values, the header has {len(header)}: "
          f"{', '.join(header)[:200]}"
        )
      yield Placed(place, dict(zip(header, values, strict=True)), share)
  except csv.Error as e:
    raise InputError(f"{path}, line {number}: not a table of values: {e}") from e


def _delimiter(path: pathlib.Path) -> str:
  """What separates values: as the name says, unless the header has only another."""
  usual = "\t" if ending(path) == ".tsv" else ","
  header = next((text for _, _, text in _lines(path)), "")
  others = [x for x in ";\t|," if x in header]
  return others[0] if others and usual not in header else usual


def _parquet(path: pathlib.Path) -> Iterator[Placed]:
  """Rows of a parquet file; in nested values, null is like an absent field."""
  need = f"{path}: parquet files need pyarrow"
  pyarrow = optional.package("pyarrow", need, "data")
  parquet = optional.package("pyarrow.parquet", need, "data")
  try:
    with parquet.ParquetFile(path) as file:
      schema, total, number = file.schema_arrow, max(file.metadata.num_rows, 1), 0
      columns = [field.name for field in schema if "binary" not in str(field.type)]
      for batch in file.iter_batches(batch_size=256, columns=columns):
        for row in batch.to_pylist():
          number += 1
          yield Placed(f"{path}, row {number}", _present(row), number / total)
  except (pyarrow.ArrowException, OSError, ValueError) as e:
    if isinstance(e, InputError):
      raise
    reason = str(e).split("\n")[0]
    raise InputError(f"cannot read the data file {str(path)!r}: {reason}") from e


def _present(value):
  """A value without the fields that parquet fills with null where a row lacks them."""
  if isinstance(value, dict):
    return {key: _present(x) for key, x in value.items() if x is not None}
  return [_present(x) for x in value] if isinstance(value, list) else value


_READERS = {
  ".jsonl": _jsonl,
  ".ndjson": _jsonl,
  ".json": _json,
  ".csv": _csv,
  ".tsv": _csv,
  ".parquet": _parquet,
}
