"""The one error for bad input: commands print its line and exit with status 2."""


class InputError(ValueError):
  """The input cannot be used. Says the value, the limit, the place and the way out."""


def unknown(what: str, name, known) -> InputError:
  """InputError for a `name` that is not among `known`; suggests the nearest one."""
  import difflib

  known = sorted(map(str, known))
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  shown = ", ".join(x or "''" for x in known)
  return InputError(f"unknown {what} {name!r}.{hint} Known: {shown}")
