"""The one error for bad input; commands print its message and exit with status 2."""


class InputError(ValueError):
  """Bad input. The message names the value, the limit, the place, and the fix."""


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
