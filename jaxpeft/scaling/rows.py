"""Tables of text: the rows of a CSV or JSONL file, and numbers in them."""

import csv
import io
import itertools
import json
import pathlib

import numpy as np

from jaxpeft.errors import InputError

_BYTES = 200_000_000
_ROWS = 300_000
_LEAST, _MOST = 1e-60, 1e60  # of a number, so that products of a few are finite
RANGES = {"loss": (1e-9, 1e9)}


def table(path: pathlib.Path) -> tuple[list[str], list[dict], list[int]]:
  """(names of columns, rows, the line of each row) of a file.

  Raises:
    InputError: it is no table, or has too many bytes or rows. Reading stops there.
  """
  try:
    found = _table(path)
  except UnicodeDecodeError as e:
    raise InputError(f"{path} is no UTF-8 text, but a table is CSV or JSONL") from e
  except OSError as e:
    raise InputError(f"--data={path} cannot be read: {e.strerror or e}") from e
  header, rows, _ = found
  if len(rows) > _ROWS:
    raise InputError(
      f"{path} has more than {_ROWS:,} rows; give the ends of the runs, or fewer "
      "points of each training curve"
    )
  if twice := sorted({name for name in header if header.count(name) > 1}):
    raise InputError(f"{path} has two columns {twice[0]!r}; remove or rename one")
  return found


def _table(path: pathlib.Path) -> tuple[list[str], list[dict], list[int]]:
  with open(path, "rb") as file:  # a device has no size, and may never end
    data = file.read(_BYTES + 1)
  if len(data) > _BYTES:
    raise InputError(f"{path} has more than {_BYTES:,} bytes; give a smaller table")
  start = data[:4096].decode("utf-8-sig", "ignore").lstrip()
  if not start and not data.strip():
    raise InputError(f"{path} is empty; give a CSV file with a header, or JSONL")
  # read line by line: a text of its own would take several times the memory
  text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
  if path.suffix in (".jsonl", ".json", ".ndjson") or start.startswith("{"):
    lines = ((i, line) for i, line in enumerate(text, 1) if line.strip())
    some = list(itertools.islice(lines, _ROWS + 1))
    rows = [_object(line, i, path) for i, line in some]
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, rows, [i for i, _ in some]
  try:
    reader = csv.DictReader(text, restval="", restkey="")
    pairs = [(row, reader.line_num) for row in itertools.islice(reader, _ROWS + 1)]
  except csv.Error as e:
    raise InputError(f"{path} is no CSV: {e}") from e
  header = [name for name in reader.fieldnames or () if name]
  if len(header) == 1 and {";", "\t"} & set(header[0]):
    raise InputError(f"{path}: separate the columns of {header[0]!r} by commas")
  return header, [row for row, _ in pairs], [line for _, line in pairs]


def _object(line: str, number: int, path) -> dict:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as e:
    raise InputError(f"line {number} of {path} is no JSON object") from e
  if not isinstance(row, dict):
    raise InputError(f"line {number} of {path} is no JSON object")
  return row


def pairs(text: str, flag: str, example: str) -> dict[str, str]:
  """The pairs of a flag's value, such as n=Params,loss=val_loss."""
  found = {}
  for word in filter(None, text.split(",")):
    key, equals, value = word.partition("=")
    if not (key.strip() and equals and value.strip()):
      raise InputError(f"--{flag}: {word!r} is not KEY=VALUE; e.g. --{flag}={example}")
    found[key.strip()] = value.strip()
  return found


def limits(what: str) -> tuple[float, float]:
  """The least and the largest number of a quantity, e.g. "loss"."""
  return RANGES.get(what, (_LEAST, _MOST))


def numbers(values: list, what: str, name: str, path, lines: list[int]) -> np.ndarray:
  """float64[P]; raises InputError for what is no positive number.

  Args:
    values: texts or numbers, float or str[P].
    what: the quantity, which has limits.
    name: of the column.
    path: of the file.
    lines: int[P], where each value is in the file.
  """
  least, most = limits(what)
  found = np.zeros(len(values))
  for i, value in enumerate(values):
    try:
      found[i] = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
      found[i] = np.nan
    if not least <= found[i] <= most:  # NaN, too
      raise InputError(
        f"{path}, line {lines[i]}: {name} is {str(value)[:40]!r}, but must be a "
        f"positive number, from {least:g} to {most:g}; leave the row out or correct it"
      )
  return found
