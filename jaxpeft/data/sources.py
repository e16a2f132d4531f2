"""Reads rows of data from JSONL files and embedded tasks, in any of four formats."""

import json
import pathlib

from jaxpeft.data import toy
from jaxpeft.errors import InputError

# format -> the fields that identify it; the first format that fits is taken.
FORMATS = {
  "messages": ("messages",),
  "question/answer": ("question", "answer"),
  "prompt/completion": ("prompt", "completion"),
  "alpaca": ("instruction", "output"),
}
_ALPACA = (
  "Below is an instruction that describes a task{}. Write a response that "
  "appropriately completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)


def read(source, limit: int | None = None) -> list[dict]:
  """The rows of a source.

  Args:
    source: a list of rows; "embedded:NAME" (see `embedded`); or the path of a JSONL
      file.
    limit: number of rows to keep, from the start; None keeps all.
  Raises:
    InputError: the file is missing or empty, or a line of it is invalid; the message
      gives the line's number.
  """
  if not isinstance(source, str | pathlib.Path):
    rows = list(source)
  elif str(source).startswith("embedded:"):
    rows = embedded(str(source).removeprefix("embedded:"))
  else:
    rows = _jsonl(pathlib.Path(source))
  if not rows:
    raise InputError(f"{source} has no rows")
  return rows[:limit]


def embedded(name: str) -> list[dict]:
  """The rows of an embedded data set.

  Args:
    name: "one_step" or "two_step" with "/train" or "/test"; or "pretrain".
  Raises:
    InputError: there is no data set of that name.
  """
  if name == "pretrain":
    stories = toy.problems(1, "train", 120_000, seed=0)
    return stories + toy.sums("train", 40_000, seed=0)
  steps, _, split = name.partition("/")
  sizes = {"train": 8_000, "test": 1_000}
  if steps not in ("one_step", "two_step") or split not in sizes:
    raise InputError(
      f"unknown embedded data {name!r}; known: pretrain, and one_step or two_step "
      "with /train or /test"
    )
  return toy.problems(1 + (steps == "two_step"), split, sizes[split], seed=0)


def format_of(row: dict, place: str) -> str:
  """The name of a row's format, a key of `FORMATS`.

  Args:
    row: a dict with the fields of one format; further fields are ignored.
    place: where the row is, for error messages, e.g. "FILE, line 3".
  Raises:
    InputError: the row has no known format, or a field has a wrong type.
  """
  if isinstance(row, dict):
    for name, fields in FORMATS.items():
      if all(field in row for field in fields):
        _check_types(row, name, place)
        return name
  known = "; ".join(" + ".join(fields) for fields in FORMATS.values())
  found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
  raise InputError(f"{place}: has {found or 'no fields'}; expected one of: {known}")


def prompt_and_completion(row: dict, form: str) -> tuple[str, str]:
  """(prompt, completion): the text of a row before the answer, and the answer.

  Questions are worded as lm-evaluation-harness words GSM8K, so that training and
  evaluation see the same prompts.

  Args:
    row: of any format except "messages".
    form: its format, from `format_of`.
  """
  if form == "question/answer":
    return f"Question: {row['question']}\nAnswer:", f" {row['answer']}"
  if form == "alpaca":
    more = row.get("input") or ""
    paired = ", paired with an input that provides further context" if more else ""
    context = f"### Input:\n{more}\n\n" if more else ""
    return _ALPACA.format(paired, row["instruction"], context), row["output"]
  return row["prompt"], row["completion"]


def _jsonl(path: pathlib.Path) -> list[dict]:
  try:
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, ValueError) as e:  # a path with NUL is a ValueError
    raise InputError(f"cannot read the data file {str(path)!r}: {e}") from e
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      rows.append(json.loads(line))
    except RecursionError as e:
      raise InputError(f"{path}, line {number}: nested too deeply") from e
    except ValueError as e:  # also a number of over 4300 digits
      raise InputError(f"{path}, line {number}: not JSON: {e}") from e
    format_of(rows[-1], f"{path}, line {number}")
  return rows


def _check_types(row: dict, name: str, place: str):
  """Raises InputError if a field of format `name` has a wrong type."""
  if name == "messages":
    _check_messages(row["messages"], place)
    tools = row.get("tools")
    if tools is not None and not (
      isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
      raise InputError(f"{place}: `tools` must be a list of JSON schemas of functions")
  else:
    for field in FORMATS[name]:
      if not isinstance(row[field], str):
        kind = type(row[field]).__name__
        raise InputError(f"{place}: `{field}` must be a text, not {kind}")
  for field in (*FORMATS[name], "input", "tools"):
    try:
      json.dumps(row.get(field), ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as e:
      bad = e.object[e.start : e.start + 1].encode("unicode-escape").decode()
      raise InputError(
        f"{place}: `{field}` holds {bad}, half of a surrogate pair, which is no "
        "character; remove it"
      ) from e
    except (ValueError, TypeError, RecursionError) as e:
      raise InputError(f"{place}: `{field}` is no JSON data: {e}") from e


def _check_messages(messages, place: str):
  """Raises InputError unless these are messages as transformers accepts them.

  A content is a text or a list of parts; a message with tool calls may have none.
  """
  good = isinstance(messages, list) and messages
  for m in messages if good else ():
    content = m.get("content") if isinstance(m, dict) else None
    parts = content if isinstance(content, list) else []
    good = (
      good
      and isinstance(m, dict)
      and isinstance(m.get("role"), str)
      and (isinstance(content, str | list) or bool(m.get("tool_calls")))
      and all(isinstance(part, str | dict) for part in parts)
    )
  if not good:
    raise InputError(
      f"{place}: `messages` must be a list of {{role, content}}, where content is a "
      'text or a list of {"type": "text", "text": ...}'
    )
