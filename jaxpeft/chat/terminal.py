"""The terminal: lines in, answers out, and a few commands that start with a slash.

Answers go to stdout and everything else to stderr. If stdin is no terminal, each line
of it is one turn, there is no prompt, and the first mistake ends the program.
"""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator

from jaxpeft import console
from jaxpeft.chat.conversation import Conversation
from jaxpeft.errors import InputError, unknown

_HELP = """/adapter NAME   answer with this adapter; without NAME: list them
/system TEXT    set the system prompt; without TEXT: none
/reset          forget the conversation
/save FILE      write the conversation to FILE.jsonl, one row that one can train on
/quit           end; so does the end of the input (Ctrl-D)
Ctrl-C stops an answer. A line that starts with // is a text with one slash."""


def run(talk: Conversation):
  """Answers the lines of stdin until its end, or /quit.

  Raises:
    InputError: a line is refused, and stdin is no terminal.
  """
  typed = sys.stdin.isatty()
  for stream in (sys.stdin, sys.stdout):
    if reconfigure := getattr(stream, "reconfigure", None):
      reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
  if typed:
    with contextlib.suppress(ImportError):
      import readline  # noqa: F401  (input() then has a history)
  for line in _typed() if typed else map(_stripped, sys.stdin):
    if not line.strip():
      continue
    try:
      if line.startswith("/") and not line.startswith("//"):
        if not _command(talk, line):
          return
      else:
        _answer(talk, line.removeprefix("/"))
    except InputError as e:
      if not typed:
        raise
      console.note(f"error: {e}")


def _stripped(line: str) -> str:
  return line.rstrip("\r\n")


def _typed() -> Iterator[str]:
  """Yields the lines that a person types."""
  while True:
    try:
      yield input("> ")
    except EOFError:
      print()
      return
    except KeyboardInterrupt:
      console.note("\n/quit or Ctrl-D ends")


def _answer(talk: Conversation, line: str):
  """Writes the answer as it comes; Ctrl-C ends it."""
  with _interrupts() as stopped:
    for piece in talk.answer(line):
      sys.stdout.write(piece)
      sys.stdout.flush()
      if stopped:
        console.note("\n(stopped)")
        break
    sys.stdout.write("\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _interrupts():
  """A list to which Ctrl-C adds, instead of raising wherever the program is.

  A second Ctrl-C raises KeyboardInterrupt, for an answer whose program compiles.
  """
  found = []

  def note(number, _):
    if found:
      raise KeyboardInterrupt
    found.append(number)

  before = signal.signal(signal.SIGINT, note)
  try:
    yield found
  finally:
    signal.signal(signal.SIGINT, before)


def _command(talk: Conversation, line: str) -> bool:
  """Carries out a command; False ends the conversation.

  Raises:
    InputError: there is no such command, or what it names is refused.
  """
  name, _, rest = line[1:].strip().partition(" ")
  rest = rest.strip()
  if name == "quit":
    return False
  if name == "help":
    console.note(_HELP)
  elif name == "reset":
    talk.reset()
    console.note("the conversation is forgotten")
  elif name == "adapter":
    if rest:
      talk.voices.use(rest)
    shown = [f"{x} (in use)" if x == talk.voices.used else x for x in talk.voices.names]
    console.note(f"adapters: {', '.join(shown)}")
  elif name == "system":
    talk.set_system(rest)
    console.note("system prompt set" if rest else "no system prompt")
  elif name == "save":
    if not rest:
      raise InputError("/save needs the name of a file")
    path = pathlib.Path(rest).expanduser()
    path = path if path.suffix else path.with_suffix(".jsonl")
    talk.save(path)
    console.note(f"saved {path}")
  else:
    known = ("adapter", "help", "quit", "reset", "save", "system")
    raise unknown("command", name, known)
  return True
