"""Pulls an adapter or a model from the hub, and says what it is.

Only safetensors, GGUF, JSON and the like are fetched: no pickle files and no code.
"""

import json
import pathlib
import shutil

from jaxpeft import temporary
from jaxpeft.checkpoints import peft_config
from jaxpeft.checkpoints.stored import open_model
from jaxpeft.errors import InputError
from jaxpeft.hub import client

_WANTED = (".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".md")
_WEIGHTS = (".safetensors", ".gguf")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# A second copy of the weights, which would double the download.
_COPIES = ("consolidated", "original/")
_SPARE = 1 << 30  # bytes that stay free


def pull(source: str, directory) -> str:
  """What was fetched and what to do with it, as text.

  Args:
    source: "org/name", or "org/name@revision" (a branch, tag or commit).
    directory: where to put it; does not exist, or is empty.
  Raises:
    InputError: there is no such repository; it has no weights that may be read, or more
      than the disk holds; or the download fails. Nothing is left then.
  """
  repo, _, revision = source.partition("@")
  client.check_name(repo, "--from")
  hub, directory = client.package(), pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"{directory} is not empty; choose another --out")
  with client.one_line(f"pulling {source}"):
    api = hub.HfApi()
    info = api.model_info(repo, revision=revision or None, files_metadata=True)
    sizes = {x.rfilename: x.size or 0 for x in info.siblings or ()}
    names = _wanted(sizes, source)
    directory.parent.mkdir(parents=True, exist_ok=True)
    _check_room(sum(sizes[name] for name in names), directory.parent)
    with temporary.directory(directory.parent, ".pull-") as tmp:
      folder = pathlib.Path(tmp) / "files"
      for name in names:
        api.hf_hub_download(repo, name, revision=info.sha, local_dir=folder)
      shutil.rmtree(folder / ".cache", ignore_errors=True)  # of the library
      if directory.exists():
        directory.rmdir()
      folder.rename(directory)
  return f"{source} at {info.sha}: {_about(directory)}"


def _wanted(sizes: dict[str, int], source: str) -> list[str]:
  """The files to fetch.

  Raises:
    InputError: none of them holds weights, or a name leaves the directory.
  """
  names = [
    name
    for name in sizes
    if name.endswith(_WANTED)
    and not name.startswith(_COPIES)
    and "/." not in f"/{name}"
  ]
  for name in names:
    if pathlib.PurePosixPath(name).is_absolute() or "\\" in name:
      raise InputError(f"{source} has a file with the name {name!r}")
  if not any(name.endswith(_WEIGHTS) for name in names):
    pickles = [name for name in sizes if name.endswith(_PICKLES)]
    more = (
      f"; {pickles[0]} is a pickle, which may run any code when it is opened: ask its "
      "author for safetensors"
      if pickles
      else ""
    )
    raise InputError(f"{source} has no weights as safetensors or GGUF{more}")
  return names


def _check_room(size: int, place: pathlib.Path):
  free = shutil.disk_usage(place).free
  if size + _SPARE > free:
    raise InputError(
      f"the files have {size / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; "
      "choose an --out on a larger disk"
    )


def _about(directory: pathlib.Path) -> str:
  """What is in a directory, and the next command."""
  if (directory / peft_config.CONFIG).exists():
    return _about_adapter(directory)
  ggufs = sorted(directory.glob("*.gguf"))
  place = ggufs[0] if ggufs and not (directory / "config.json").exists() else directory
  try:
    c = open_model(place).config
  except InputError as e:
    return f"jaxpeft cannot open it: {e}"
  kind = "GGUF file" if place != directory else "model"
  return (
    f"a {kind} of family {c.family}, {c.depth} layers of width {c.width}\n"
    f"next: python -m jaxpeft chat --model={place}, or "
    f"train.py --config.model.source={place}"
  )


def _about_adapter(directory: pathlib.Path) -> str:
  try:
    values = json.loads((directory / peft_config.CONFIG).read_text())
    method, base = values["peft_type"], values.get("base_model_name_or_path")
  except (ValueError, LookupError, TypeError) as e:
    return f"an adapter whose {peft_config.CONFIG} is damaged: {e}"
  rank = f" of rank {values['r']}" if "r" in values else ""
  return (
    f"an adapter in PEFT's format, {method}{rank}, for {base or 'a base not named'}\n"
    f"next: python -m jaxpeft chat --model={base or 'BASE'} --adapter=mine={directory}"
  )
