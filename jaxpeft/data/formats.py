"""Forms of a row: the fields that identify each, and the texts that they give."""

import json

from jaxpeft.data import choices, columns, plans, segments
from jaxpeft.errors import InputError, unknown

# form -> the fields that identify it; the first form that fits is taken.
FORMATS = {
  "messages": ("messages",),
  "conversations": ("conversations",),
  "conversation": ("conversation",),
  "question/answer": ("question", "answer"),
  "prompt/completion": ("prompt", "completion"),
  "alpaca": ("instruction", "output"),
  "segments": (segments.FIELD,),
  **plans.FORMS,
  "preference": ("chosen", "rejected"),
  "ranking": ("ranked",),
}
_CHATS = ("messages", "conversations", "conversation")
PREFERENCES = ("preference", "ranking")  # forms that `preferences` reads
_MORE = (
  "margin",
  "input",
  "system",
  "tools",
  "choices",
  "label",
  "answerKey",
)  # fields that a row of some form may have, too
FIELDS = (*dict.fromkeys(f for fields in FORMATS.values() for f in fields), *_MORE)
# ShareGPT's "from" -> role.
ROLES = {
  "system": "system",
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "chatgpt": "assistant",
  "bot": "assistant",
  "model": "assistant",
  "assistant": "assistant",
  "tool": "tool",
  "observation": "tool",
  "function_response": "tool",
}
_MOST = 4 * 2**20  # characters of a row: its tokens need a thousand times that in bytes
_ALPACA = (
  "Below is an instruction that describes a task{}. Write a response that "
  "appropriately completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)


def checked(row, place: str) -> tuple[str, dict]:
  """(form, row): the name of a row's form, and the row as that form has it.

  Conversations of every form become {"messages": [...], "tools": ... or None}, and
  segments become {"segments": tuple of `segments.Segment`}. Rows of `PREFERENCES` are
  recognized, and their values are checked by `preferences.parse`.

  Args:
    row: a dict with the fields of one form, of which further fields are ignored. A
      field that is None does not count.
    place: where the row is, for error messages, e.g. "FILE, line 3".
  Raises:
    InputError: the row has no known form, or a field has a wrong type.
  """
  if choices.has(row):
    given = choices.parse(row, place)
    for text in (given.question, *given.texts):
      check_characters(text, choices.FIELD, place)
    check_size(sum(map(len, (given.question, *given.texts))), place)
    return choices.FIELD, row
  if isinstance(row, dict):
    for form, fields in FORMATS.items():
      if all(row.get(field) is not None for field in fields):
        if form in PREFERENCES:
          return form, row
        if form in _CHATS:
          return "messages", chat(row, form, place)
        if form == segments.FIELD:
          return form, {form: _segments(row[form], place)}
        if form in plans.FORMS:
          text = "".join(plans.checked(row, form, place))
          check_characters(text, form, place)
          check_size(len(text), place)
          return form, row
        _check_texts(row, form, place)
        return form, row
  raise columns.no_form(row, place, FORMATS)


def prompt_and_completion(row: dict, form: str) -> tuple[str, str]:
  """(prompt, completion): the text of a row before the answer, and the answer.

  Questions are worded as lm-evaluation-harness words GSM8K, so that training and
  evaluation see the same prompts.

  Args:
    row: of any form except conversations.
    form: its form, from `checked`.
  Raises:
    InputError: the row holds a preference.
  """
  if form in PREFERENCES:
    raise InputError(preference(form))
  if form == choices.FIELD:
    given = choices.parse(row, "a row")
    return given.prompt(), given.options()[given.right][1]
  if form == "question/answer":
    return f"Question: {row['question']}\nAnswer:", f" {row['answer']}"
  if form == "alpaca":
    more = row.get("input") or ""
    paired = ", paired with an input that provides further context" if more else ""
    context = f"### Input:\n{more}\n\n" if more else ""
    return _ALPACA.format(paired, row["instruction"], context), row["output"]
  if form == segments.FIELD:
    return segments.split(segments.parse(row[form], "a row"))
  if form in plans.FORMS:
    return plans.split(row, form)
  return row["prompt"], row["completion"]


def preference(form: str) -> str:
  """What to say of a preference where one answer is needed."""
  return (
    f"the row holds a preference ({' + '.join(FORMATS[form])}), not one answer; the "
    "objectives 'reward' and 'preference' learn from it (objective.name), and the task "
    "'preference' asks about it (eval.task; '' is none)"
  )


def check_columns(named: dict[str, str]):
  """Raises InputError unless the keys of `data.columns` are fields of some form."""
  for field, column in named.items():
    if field not in FIELDS:
      raise unknown("field in data.columns", field, FIELDS)
    if not isinstance(column, str):
      raise InputError(f"data.columns.{field} is {column!r}; it must name a column")


def _check_texts(row: dict, form: str, place: str):
  """Raises InputError unless the fields of a form without turns are texts."""
  total = 0
  for field in (*FORMATS[form], "input") if form == "alpaca" else FORMATS[form]:
    value = row.get(field)
    if value is None and field == "input":
      continue
    if not isinstance(value, str):
      kind = type(value).__name__
      raise InputError(f"{place}: `{field}` must be a text, not {kind}")
    check_characters(value, field, place)
    total += len(value)
  check_size(total, place)


def check_characters(text: str, field: str, place: str):
  """Raises InputError if a text has half of a surrogate pair, which is no character."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    bad = e.object[e.start : e.start + 1].encode("unicode-escape").decode()
    raise InputError(
      f"{place}: `{field}` holds {bad}, half of a surrogate pair, which is no "
      "character; remove it"
    ) from e


def check_size(characters: int, place: str):
  if characters > _MOST:
    raise InputError(
      f"{place}: has {characters} characters; at most {_MOST} are read as one row: "
      "split it"
    )


def _segments(value, place: str) -> tuple[segments.Segment, ...]:
  found = segments.parse(_parsed(value, segments.FIELD, place), place)
  check_size(sum(len(segment.text) for segment in found), place)
  for segment in found:
    check_characters(segment.text, segments.FIELD, place)
  return found


def chat(row: dict, form: str, place: str) -> dict:
  """{"messages", "tools"} of a conversation in any of its forms."""
  messages = _parsed(row[form], form, place)
  tools = _parsed(row.get("tools"), "tools", place)
  if tools is not None and not (
    isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
  ):
    raise InputError(f"{place}: `tools` must be a list of JSON schemas of functions")
  for field, value in ((form, messages), ("tools", tools)):
    try:
      text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError) as e:
      raise InputError(f"{place}: `{field}` is no JSON data: {e}") from e
    check_characters(text, field, place)
    check_size(len(text), place)
  messages = messages if isinstance(messages, list) else []
  messages = [_turn(m, form, place) for m in messages]
  _check_messages(messages, form, place)
  system = row.get("system")
  if form != "messages" and system and messages[0]["role"] != "system":
    if not isinstance(system, str):
      kind = type(system).__name__
      raise InputError(f"{place}: `system` must be a text, not {kind}")
    check_characters(system, "system", place)
    messages = [dict(role="system", content=system), *messages]
  return dict(messages=messages, tools=tools or None)


def _parsed(value, field: str, place: str):
  """A value that may be given as JSON text, e.g. in a CSV file."""
  if not isinstance(value, str):
    return value
  if not value.strip():
    return None
  check_size(len(value), place)
  try:
    return json.loads(value)
  except (ValueError, RecursionError) as e:
    reason = "nested too deeply" if isinstance(e, RecursionError) else e
    raise InputError(
      f"{place}: `{field}` must be a list, or JSON text of one: {reason}"
    ) from e


def _turn(message, form: str, place: str):
  """A message in the form of {"role", "content"}; ShareGPT has {"from", "value"}."""
  if not isinstance(message, dict) or "role" in message or "from" not in message:
    return message
  speaker = message["from"]
  if speaker not in (ROLES if isinstance(speaker, str) else ()):
    raise InputError(f"{place}: {unknown(f'speaker in `{form}`', speaker, ROLES)}")
  rest = {key: x for key, x in message.items() if key not in ("from", "value")}
  return dict(role=ROLES[speaker], content=message.get("value")) | rest


def _check_messages(messages, form: str, place: str):
  """Raises InputError unless these are messages as transformers accepts them.

  A content is a text or a list of parts; a message with tool calls may have none.
  """
  good = bool(messages)
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
    ours = "{from, value}" if form.startswith("conversation") else "{role, content}"
    raise InputError(
      f"{place}: `{form}` must be a list of {ours}, where {ours[1:-1].split()[-1]} is "
      'a text or a list of {"type": "text", "text": ...}'
    )
