"""Renders chat templates in a jinja2 sandbox and finds the assistant's tokens.

A template may mark the assistant's words with {% generation %}. Most templates do not,
and other libraries then silently return a mask of zeros. For those templates, the
conversation is rendered up to each answer, without and with it: the text that the
answer adds is the assistant's. Templates cannot read today's date, since a resumed run
would then train on other tokens.
"""

import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jaxpeft.errors import InputError

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters that `chat` removes again


class _Generation(jinja2.ext.Extension):
  """The jinja2 tag {% generation %}: puts _OPEN and _CLOSE around its content."""

  tags = {"generation"}  # noqa: RUF012  (jinja2 reads it from the class)

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body)
    return call.set_lineno(line)

  def _mark(self, caller):
    return f"{_OPEN}{caller()}{_CLOSE}"


def render(source: str, messages, generation_prompt: bool, special: dict) -> str:
  """A conversation as text, with _OPEN and _CLOSE around what the template marks.

  Args:
    source: the template in jinja2.
    messages: list of {"role", "content"}.
    generation_prompt: whether to end with the header of the assistant's next turn.
    special: {name: special token} that the template may print.
  Raises:
    InputError: the template fails or refuses the conversation.
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
  """(ids, supervised): the tokens of a conversation, and which the assistant wrote.

  Args:
    tokenizer: a `Tokenizer` with a chat template.
    messages: list of {"role", "content"}.
    generation_prompt: whether to end with the header of the assistant's next turn.
  Raises:
    InputError: the template fails; it rewrites earlier turns, so that an answer's
      tokens cannot be found; or a message contains a character that marks answers.
  """
  source, special = tokenizer.chat_template, tokenizer.special
  if any(mark in m["content"] for m in messages for mark in (_OPEN, _CLOSE)):
    raise InputError(
      "a message contains U+E000 or U+E001, which jaxpeft uses to mark answers"
    )
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
    # From the first to the last: a token between them may have an empty offset.
    for i in range(touched[0], touched[-1] + 1) if touched else ():
      supervised[i] = True
  return encoding.ids, supervised


def _marked(text: str) -> list[tuple[int, int]]:
  """Spans of the marked parts, in characters of the text without the marks."""
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
  """The span of characters that each assistant turn adds to the text before it.

  Raises:
    InputError: a turn changes the text before it.
  """
  spans = []
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = render(source, messages[:i], True, special)
    after = render(source, messages[: i + 1], False, special)
    if not (after.startswith(before) and text.startswith(after)):
      raise InputError(
        f"the chat template rewrites what comes before message {i}, so the tokens of "
        "that answer cannot be found; mark answers with {% generation %} in the "
        "template"
      )
    spans.append((len(before), len(after)))
  return spans
