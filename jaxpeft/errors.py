"""The one error for bad input; commands print its message and exit with status 2."""

import errno
import re


class InputError(ValueError):
  """Bad input. The message names the value, the limit, the place, and the fix."""

  def __str__(self) -> str:
    """The message as one line, also if a value in it has several."""
    return " ".join(super().__str__().splitlines())


def unknown(what: str, name, known) -> InputError:
  """An InputError for a `name` that is not in `known`, with the closest known name.

  Args:
    what: the kind of name, e.g. "adapter"; the message begins "unknown adapter".
    name: the name that was given.
    known: all valid names.
  """
  import difflib

  known = sorted(map(str, known))
  name = name if len(str(name)) < 200 else f"{str(name)[:200]}..."
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  shown = ", ".join(x or "''" for x in known)
  return InputError(f"unknown {what} {name!r}.{hint} Known: {shown}")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = re.compile(
  r"no space left|disk quota exceeded|file too large|os error (28|122|27)\b", re.I
)
_MEMORY_TEXT = re.compile(r"RESOURCE_EXHAUSTED|out of memory|cannot allocate", re.I)


def shortage(error: BaseException) -> str | None:
  """One line about a full disk or memory if that is what an error is about, or None.

  Libraries wrap the system's error in their own, e.g. Orbax in a ValueError and
  safetensors in a SafetensorError; the whole chain of errors is searched.
  """
  chain, link = [], error
  while link is not None and link not in chain and len(chain) < 20:
    chain.append(link)
    link = link.__cause__ or link.__context__
  for e in chain:
    found = _FULL_TEXT.search(str(e))
    if found or (isinstance(e, OSError) and e.errno in _FULL):
      name = getattr(e, "filename", None)
      return (
        f"the disk is full, or a quota is reached{f' at {name}' if name else ''}. "
        "Free some room and run the same command: a run goes on from its last "
        "checkpoint"
      )
  for e in chain:
    if isinstance(e, MemoryError) or _MEMORY_TEXT.search(str(e)):
      reason = " ".join(str(e).split())[:200]
      return (
        f"out of memory{f' ({reason})' if reason else ''}. Lower train.batch_size, "
        "data.max_tokens or eval.batch_size, or raise train.accumulate; `python -m "
        "jaxpeft memory` says what a run needs"
      )
  return None
