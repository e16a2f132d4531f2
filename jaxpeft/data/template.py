"""Renders chat templates as transformers does, within the limits of `sandbox`.

The text equals that of transformers' `apply_chat_template`, with one exception:
templates that ask for today's date get `DATE`, since a resumed run, or a model that is
trained today and used tomorrow, would otherwise see other tokens.

Source: transformers 5.24, utils/chat_template_utils.py.
"""

import datetime
import functools
import json
import re

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.utils

from jaxpeft.data import sandbox
from jaxpeft.errors import InputError

DATE = datetime.datetime(2024, 7, 26)  # Llama 3.2's template has it as its default
_REASONING = ("reasoning_content", "thinking", "reasoning")
_PRIVATE = ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))  # Unicode's private-use planes


def plain(value):
  """A copy of JSON data for templates, which must get no objects with methods.

  Raises:
    InputError: it is nested too deeply.
  """
  try:
    text = json.dumps(value, default=lambda x: getattr(x, "tolist", lambda: repr(x))())
    return json.loads(text)
  except (TypeError, ValueError, RecursionError) as e:
    raise InputError(f"a conversation must hold JSON data: {e}") from e


def normalized(messages) -> list[dict]:
  """Messages as templates get them: without empty keys, and reasoning by each name.

  Raises:
    InputError: they are no list of objects, or an object is nested too deeply.
  """
  if not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
    raise InputError("a conversation must be a list of messages with a `role`")
  out = []
  for message in plain(list(messages)):
    message = {k: v for k, v in message.items() if v is not None}
    reasoning = next((message[k] for k in _REASONING if k in message), None)
    if reasoning is not None:
      message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    out.append(message)
  return out


def render(
  source: str,
  messages,
  generation_prompt: bool,
  special: dict[str, str],
  tools=None,
  marks: tuple[str, str] | None = None,
) -> str:
  """A conversation as text.

  Args:
    source: the template in jinja2.
    messages: list of {"role", "content", ...}, from `normalized`.
    generation_prompt: whether to end with the header of the assistant's next turn.
    special: {name: special token} that the template may print.
    tools: JSON schemas of functions that the assistant may call, or None.
    marks: two texts to put around what the template has in {% generation %}; None puts
      nothing there.
  Raises:
    InputError: the template fails, refuses the conversation, or exceeds the limits of
      `sandbox`.
  """
  try:
    program = _compile(source)
    environment = program.environment
    assert isinstance(environment, _Environment)
    environment.start()
    environment.marks = marks or ("", "")
    return "".join(
      program.generate(
        messages=messages,
        tools=tools,
        documents=None,
        add_generation_prompt=generation_prompt,
        **special,
      )
    )
  except sandbox.Exceeded as e:
    raise InputError(f"the chat template was stopped: {e}") from None
  # A template is a program: whatever it raises is its own failure.
  except Exception as e:
    reason = str(e) or type(e).__name__
    raise InputError(
      f"the chat template refuses the conversation: {reason[:500]}"
    ) from e


def private_characters(count: int, *texts: str) -> list[str]:
  """Private-use characters that occur in none of the texts.

  Raises:
    InputError: the texts use both of Unicode's private-use planes.
  """
  for first, last in _PRIVATE:
    used = re.compile(f"[{chr(first)}-{chr(last)}]")
    if first + count <= last and not any(map(used.search, texts)):
      return [chr(first + i) for i in range(count)]
  raise InputError(
    "a conversation uses the private-use characters of both planes, U+F0000 and "
    f"U+100000, or has over {_PRIVATE[0][1] - _PRIVATE[0][0]} messages; jaxpeft needs "
    "one plane to find the answers: remove these characters"
  )


class _Generation(jinja2.ext.Extension):
  """The tag {% generation %}: puts the environment's marks around its content."""

  tags = {"generation"}  # noqa: RUF012  (jinja2 reads it from the class)

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body)
    return call.set_lineno(line)

  def _mark(self, caller):
    environment = self.environment
    assert isinstance(environment, _Environment)
    start, end = environment.marks
    return f"{start}{caller()}{end}"


class _Environment(sandbox.Environment):
  """The environment of chat templates, with the names that transformers gives them."""

  marks: tuple[str, str] = ("", "")

  def __init__(self):
    super().__init__(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    self.filters["tojson"] = _tojson
    self.globals["raise_exception"] = _refuse
    self.globals["strftime_now"] = DATE.strftime
    self.globals["dict"] = _Dict()
    self.globals["namespace"] = _Namespace


class _Dict:
  """`dict` without the rest of Python's type."""

  def __call__(self, *args, **kwargs):
    return dict(*args, **kwargs)

  def fromkeys(self, keys, value=None):
    made = dict.fromkeys(keys, value)
    sandbox.size_of(made)
    return made


class _Namespace(jinja2.utils.Namespace):
  """jinja2's namespace; refuses names with a leading underscore, as transformers."""

  def __init__(*args, **kwargs):  # a template may name a field `self`
    self, *rest = args
    jinja2.utils.Namespace.__init__(self, *rest, **kwargs)
    for name in dict(*rest, **kwargs):
      _check_name(name)

  def __setitem__(self, name, value):
    _check_name(name)
    super().__setitem__(name, value)

  def __repr__(self):
    return "<Namespace>"


def _check_name(name):
  if str(name).startswith("_"):
    raise jinja2.TemplateError(f"namespace field {name!r} starts with an underscore")


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
  if len(source) > sandbox.MAX_SOURCE:
    raise sandbox.Exceeded(f"it has more than {sandbox.MAX_SOURCE} characters")
  return _Environment().from_string(source)


def _refuse(message):
  raise jinja2.TemplateError(message)


@jinja2.pass_environment
def _tojson(
  environment,
  value,
  ensure_ascii=False,
  indent=None,
  separators=None,
  sort_keys=False,
):
  environment.charge(chars=sandbox.size_of(value))
  if not isinstance(indent, int | None):
    indent = str(indent)
  if len(indent if isinstance(indent, str) else "") > 100 or (
    isinstance(indent, int) and indent > 100
  ):
    raise sandbox.Exceeded("tojson indents by more than 100")
  encoder = json.JSONEncoder(
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )
  out = []
  for piece in encoder.iterencode(value):
    environment.charge(chars=len(piece))
    out.append(piece)
  return "".join(out)
