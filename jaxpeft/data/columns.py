"""Names of a file's columns: mapped to fields, or told where no form of a row fits."""

import difflib

from jaxpeft.errors import InputError


def mapped(row, named: dict[str, str], place: str):
  """The row {field: row[column]} that `data.columns` describes; {} changes nothing.

  Raises:
    InputError: the row lacks a column.
  """
  if not named or not isinstance(row, dict):
    return row
  for field, column in named.items():
    if column not in row:
      raise InputError(
        f"{place}: has no column {column!r}, which data.columns.{field} names; "
        f"columns: {_names(row)}{_near(column, row)}"
      )
  return {field: row[column] for field, column in named.items()}


def no_form(row, place: str, forms: dict[str, tuple]) -> InputError:
  """What to say of a row that has no form: its columns, and how to name them.

  Args:
    row: of a data file.
    place: where it is, for the message.
    forms: form -> the fields that identify it.
  """
  if not isinstance(row, dict):
    kind = type(row).__name__
    return InputError(f"{place}: has {kind}; a row must be an object with named fields")
  known = "; ".join(" + ".join(fields) for fields in forms.values())
  text = f"{place}: has {_names(row) or 'no fields'}; expected one of: {known}"
  there = {name for name, value in row.items() if value is not None}

  def closeness(fields):
    same = [max((_ratio(f, name) for name in there), default=0.0) for f in fields]
    return sum(f in there for f in fields) / len(fields), sum(same) / len(fields)

  nearest = max(forms.values(), key=closeness)
  if there and not any(f in there for f in nearest) and closeness(nearest)[1] < 0.6:
    own = [_printable(name) for name in row if name in there][:2]
    own += ["COLUMN"] * (2 - len(own))
    return InputError(
      f"{text}. Columns of other names are mapped, e.g. --config.data.columns.prompt="
      f"{own[0]} --config.data.columns.completion={own[1]}"
    )
  lacks = [field for field in nearest if field not in there]
  if there:
    text += (
      f". Nearest is {' + '.join(nearest)}, without {' and '.join(lacks)}"
      f"{_near(lacks[0], there)}. Columns of other names are mapped by "
      f"--config.data.columns.{lacks[0]}=COLUMN"
    )
  return InputError(text)


def _names(row) -> str:
  names = [_printable(name) for name in row]
  return ", ".join(names[:12]) + (f" and {len(names) - 12} more" * (len(names) > 12))


def _near(name: str, names) -> str:
  found = difflib.get_close_matches(name, [_printable(x) for x in names], n=1)
  return f" (did you mean {found[0]!r}?)" if found else ""


def _ratio(a: str, b) -> float:
  return difflib.SequenceMatcher(None, a, str(b)[:40]).ratio()


def _printable(name) -> str:
  return str(name)[:40].encode("utf-8", "backslashreplace").decode()
