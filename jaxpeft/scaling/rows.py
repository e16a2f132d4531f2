"""Tables of text: the rows of a CSV or JSONL file, and numbers in them."""

import csv
import json
import pathlib

import numpy as np

from jaxpeft.errors import InputError

_BYTES = 200_000_000
_ROWS = 1_000_000


def table(path: pathlib.Path) -> tuple[list[str], list[dict]]:
  """(names of columns, rows) of a file."""
  if path.is_file() and path.stat().st_size > _BYTES:
    raise InputError(f"{path} has more than {_BYTES:,} bytes; give a smaller table")
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as e:
    raise InputError(f"{path} is no UTF-8 text, but a table is CSV or JSONL") from e
  if not text.strip():
    raise InputError(f"{path} is empty; give a CSV file with a header, or JSONL")
  rows: list[dict]
  if path.suffix in (".jsonl", ".json", ".ndjson") or text.lstrip().startswith("{"):
    rows = [_object(line, i, path) for i, line in _lines(text)]
    header = list(dict.fromkeys(name for row in rows for name in row))
  else:
    try:
      reader = csv.DictReader(text.splitlines(), restval="", restkey="")
      rows = list(reader)
    except csv.Error as e:
      raise InputError(f"{path} is no CSV: {e}") from e
    header = [name for name in reader.fieldnames or () if name]
  if len(rows) > _ROWS:
    raise InputError(f"{path} has {len(rows):,} rows, more than {_ROWS:,}")
  return header, rows


def _lines(text: str):
  return ((i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip())


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


def numbers(values: list, name: str, path) -> np.ndarray:
  """float64[P]; raises InputError for what is no positive number."""
  found = np.zeros(len(values))
  for i, value in enumerate(values):
    try:
      found[i] = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
      found[i] = np.nan
    if not (np.isfinite(found[i]) and found[i] > 0):
      raise InputError(
        f"{name} of point {i + 1} in {path} is {str(value)[:40]!r}, but must be a "
        "positive number; leave the row out or correct it"
      )
  return found
