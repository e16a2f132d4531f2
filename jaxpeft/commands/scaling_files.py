"""The files that `scaling` writes: refused before the work, and written whole."""

import os
import pathlib

_PICTURES = (".png", ".pdf", ".svg", ".jpg")


def check(**given: str | None):
  """Refuses names of files that could not be written at the end.

  Args:
    given: flag -> its value, None where it is not given; `plot` is a picture.
  Raises:
    InputError: the directory does not exist or cannot be written, the file is a
      directory, two flags name one file, or a picture has another ending.
  """
  from jaxpeft.errors import InputError

  seen: dict[pathlib.Path, str] = {}
  for flag, text in given.items():
    if text is None:
      continue
    flag, path = f"--{flag}={text}", pathlib.Path(text)
    try:
      folder, taken, place = path.parent, path.is_dir(), path.resolve()
      missing, closed = not folder.is_dir(), not os.access(folder, os.W_OK)
      closed |= path.exists() and not os.access(path, os.W_OK)
    except (OSError, ValueError) as e:  # a loop of links, a name with NUL
      raise InputError(f"{flag} is no name of a file: {e}") from e
    if not text or taken:
      raise InputError(f"{flag} is a directory; give the name of a file in it")
    if missing:
      raise InputError(f"{flag}: there is no directory {folder}; make it first")
    if closed:
      raise InputError(f"{flag} cannot be written; give another place")
    if flag.startswith("--plot") and path.suffix.lower() not in _PICTURES:
      raise InputError(f"{flag} does not end in {', '.join(_PICTURES[:-1])} or .jpg")
    if place in seen:
      raise InputError(f"{flag} is the file of {seen[place]}, too; give another name")
    seen[place] = flag


def write(path: str, text: str):
  """Writes a file whole, or leaves what was there."""
  new = pathlib.Path(f"{path}.tmp")
  try:
    new.write_text(text + "\n")
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)
