"""Chat templates in sandboxed jinja2, and which of their tokens the assistant wrote.

A template that marks the assistant's words with {% generation %} says so itself. The
stock ones do not, and a mask from them would be all zero without a word: for these,
the conversation is rendered up to before and after each answer, and what an answer
added to the text is its own. Templates do not learn today's date: a resumed run would
train on other tokens.
"""

import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jaxpeft.errors import InputError

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters, removed again below


class _Generation(jinja2.ext.Extension):
  """{% generation %} ... {% endgeneration %}: marks the assistant's words."""

  tags = {"generation"}  # noqa: RUF012  (jinja2 reads it from the class)

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body)
    return call.set_lineno(line)

  def _mark(self, caller):
    return f"{_OPEN}{caller()}{_CLOSE}"


def render(source: str, messages, generation_prompt: bool, special: dict) -> str:
  """The conversation as text, the assistant's words marked if the template marks them.

  Raises:
    InputError: if the template fails on it.
  """

  def refuse(message):
    raise jinja2.TemplateError(message)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, "jinja2.ext.loopcontrols"],
  )
  env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
  env.globals["raise_exception"] = refuse
  try:
    return env.from_string(source).render(
      messages=messages, add_generation_prompt=generation_prompt, **special
    )
  except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as e:
    raise InputError(f"the chat template refuses the conversation: {e}") from e


def chat(tokenizer, messages, generation_prompt: bool = False):
  """(ids, supervised): a conversation's tokens, and which the assistant wrote.

  Args:
    tokenizer: a `Tokenizer` with a chat template.
    messages: list of {"role", "content"}.
    generation_prompt: end with the header of the assistant's next turn.
  Raises:
    InputError: if the template fails, or rewrites earlier turns, so that what an
      answer added cannot be told.
  """
  source, special = tokenizer.chat_template, tokenizer.special
  if any(mark in m["content"] for m in messages for mark in (_OPEN, _CLOSE)):
    raise InputError("a message contains U+E000 or U+E001, which mark answers here")
  text = render(source, messages, generation_prompt, special)
  if _OPEN in text:
    spans = _marked(text)
  else:
    spans = _added(source, messages, text, special)
  text = text.replace(_OPEN, "").replace(_CLOSE, "")
  encoding = tokenizer.core.encode(text, add_special_tokens=False)
  supervised = [False] * len(encoding.ids)
  for a, b in spans:
    touched = [
      i for i, (start, end) in enumerate(encoding.offsets) if a < end and start < b
    ]
    # All between the first and the last: a tokenizer may give a space no characters.
    for i in range(touched[0], touched[-1] + 1) if touched else ():
      supervised[i] = True
  return encoding.ids, supervised


def _marked(text: str) -> list[tuple[int, int]]:
  """Character spans between the marks, in the text without them."""
  spans, plain = [], 0
  for char in text:
    if char == _OPEN:
      spans.append((plain, plain))
    elif char == _CLOSE:
      spans[-1] = (spans[-1][0], plain)
    else:
      plain += 1
  return spans


def _added(source, messages, text: str, special) -> list[tuple[int, int]]:
  """Character spans that each assistant turn added to the text before it."""
  spans = []
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = render(source, messages[:i], True, special)
    after = render(source, messages[: i + 1], False, special)
    if not (after.startswith(before) and text.startswith(after)):
      raise InputError(
        f"the chat template rewrites what comes before message {i}, so its answer's "
        "tokens cannot be told apart; mark them with {% generation %} in the template"
      )
    spans.append((len(before), len(after)))
  return spans
