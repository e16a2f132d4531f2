"""Finds the files of a data set of the Hugging Face hub, without `datasets`.

A data set is named org/name[@revision][:config][[split]], for example
openai/gsm8k:main[train]. Its card says which files belong to which config and split. If
it does not, their names do. Otherwise the hub's own conversion to parquet is taken.
Sources: the hub's documentation of "data files configuration" and of the branch
refs/convert/parquet.
"""

import fnmatch
import pathlib
import re
from typing import NamedTuple

from jaxpeft import optional
from jaxpeft.data import files as readers
from jaxpeft.errors import InputError, unknown

_NAME = re.compile(
  r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<rev>[^:\[\]]+))?"
  r"(?::(?P<config>[^:\[\]]+))?(?:\[(?P<split>[^\[\]]+)\])?"
)
_CONVERTED = "refs/convert/parquet"
# As `datasets` has them; a word of a file's name or folder says its split.
_SPLITS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "dev", "val"),
  "test": ("test", "testing", "eval", "evaluation"),
}
_CARD = 2**20  # bytes of a card that are read


class Name(NamedTuple):
  """The parts of a data set's name."""

  repo: str
  rev: str | None
  config: str | None
  split: str | None


def parse(name: str) -> Name | None:
  """The parts of org/name[@revision][:config][[split]]; None if it is none."""
  match = _NAME.fullmatch(name)
  if not match or readers.known(match["repo"]):
    return None
  return Name(**match.groupdict())


def files(name: str) -> list[pathlib.Path]:
  """The files of a config and split, downloaded, in the order of their names.

  Raises:
    InputError: huggingface_hub is missing, the download fails, or there is no such
      config or split; the message names those that there are.
  """
  what = parse(name)
  assert what is not None
  need = f"there is no data file {name!r}; to fetch a data set from the hub"
  client = optional.package("huggingface_hub", need, "data")
  try:
    rev, names = what.rev, _listing(client, what.repo, what.rev)
    found = _of_card(client, what, names) or _by_name(names)
    if not found and rev is None:
      rev = _CONVERTED
      found = _converted(_listing(client, what.repo, rev))
    chosen = _choose(found, what, name)
    return [
      pathlib.Path(
        client.hf_hub_download(what.repo, x, repo_type="dataset", revision=rev)
      )
      for x in chosen
    ]
  except InputError:
    raise
  except Exception as e:  # its own errors, and those of its HTTP library
    reason = str(e).strip().split("\n")[0] or type(e).__name__
    raise InputError(
      f"there is no data file {name!r}, and its download from the hub failed: {reason}"
    ) from e


def _listing(client, repo: str, rev: str | None) -> list[str]:
  """The names of all files of a revision; offline, of those that were downloaded."""
  try:
    info = client.HfApi().dataset_info(repo, revision=rev)
    return sorted(x.rfilename for x in info.siblings or ())
  except Exception:
    try:
      folder = client.snapshot_download(
        repo, repo_type="dataset", revision=rev, local_files_only=True
      )
    except Exception:
      folder = None
    if folder is None:
      raise
    root = pathlib.Path(folder)
    names = (x.relative_to(root).as_posix() for x in root.rglob("*") if x.is_file())
    return sorted(names)


def _of_card(client, what: Name, names: list[str]) -> dict:
  """{config: {split: files}} as the data set's card says; {} if it does not."""
  if "README.md" not in names:
    return {}
  import yaml  # huggingface_hub needs it, too

  card = client.hf_hub_download(
    what.repo, "README.md", repo_type="dataset", revision=what.rev
  )
  with open(card, encoding="utf-8", errors="replace") as f:
    head = re.match(r"---\r?\n(.*?)\n---", f.read(_CARD), re.DOTALL)
  try:
    values = yaml.safe_load(head[1]) if head else None
  except (yaml.YAMLError, RecursionError, ValueError) as e:
    raise InputError(f"the card of {what.repo} is no YAML: {str(e)[:200]}") from e
  out = {}
  configs = values.get("configs") if isinstance(values, dict) else None
  for one in configs if isinstance(configs, list) else ():
    if isinstance(one, dict) and one.get("data_files") is not None:
      base = str(one.get("data_dir") or "")
      out[str(one.get("config_name", "default"))] = {
        split: _matching(names, base, patterns)
        for split, patterns in _patterns(one["data_files"])
      }
  return out


def _patterns(value):
  """Yields (split, [pattern]) of a card's `data_files`, in any of its forms."""
  entries = value if isinstance(value, list) else [value]
  plain = [x for x in entries if isinstance(x, str)]
  if plain:
    yield "train", plain
  for entry in entries:
    if isinstance(entry, dict):
      path = entry.get("path", ())
      paths = [path] if isinstance(path, str) else path
      yield str(entry.get("split", "train")), [str(x) for x in paths]


def _matching(names: list[str], base: str, patterns: list[str]) -> list[str]:
  full = [f"{base.strip('/')}/{p}".lstrip("/").removeprefix("./") for p in patterns]
  full += [x.replace("**/", "") for x in full if "**/" in x]
  return [x for x in names if any(fnmatch.fnmatchcase(x, p) for p in full)]


def _by_name(names: list[str]) -> dict:
  """{"default": {split: files}} as the names of files and folders say."""
  data = [x for x in names if readers.known(x)]
  out: dict[str, list[str]] = {}
  for name in data:
    words = re.split(r"[^a-z0-9]+", name.lower())
    for split, synonyms in _SPLITS.items():
      if any(word in synonyms for word in words):
        out.setdefault(split, []).append(name)
        break
  if not out and data:
    out = {"train": data}
  return {"default": out} if out else {}


def _converted(names: list[str]) -> dict:
  """{config: {split: files}} of the branch with parquet: config/split/0000.parquet.

  Of a large data set it has only the first part, as the split "partial-train".
  """
  out: dict[str, dict] = {}
  for name in names:
    parts = name.split("/")
    if len(parts) == 3 and name.endswith(".parquet"):
      out.setdefault(parts[0], {}).setdefault(parts[1], []).append(name)
  return out


def _choose(found: dict, what: Name, name: str) -> list[str]:
  """The files of the config and split that are named, or of the only ones."""
  configs = {key: {s: x for s, x in value.items() if x} for key, value in found.items()}
  configs = {key: value for key, value in configs.items() if value}
  if not configs:
    raise InputError(
      f"the data set {what.repo} has no files that could be read (JSONL, JSON, CSV, "
      "TSV, parquet)"
    )
  config = what.config or (
    "default" if "default" in configs else next(iter(configs)) if len(configs) == 1
    else ""
  )  # fmt: skip
  if not config:
    raise InputError(
      f"the data set {what.repo} has several configs; name one, as in "
      f"{what.repo}:{next(iter(configs))}. Known: {', '.join(sorted(configs))}"
    )
  if config not in configs:
    raise unknown(f"config of the data set {what.repo}", config, configs)
  splits = configs[config]
  split = what.split or (next(iter(splits)) if len(splits) == 1 else "")
  if not split:
    first = next(iter(splits))
    raise InputError(
      f"the data set {name} has several splits; name one, as in {name}[{first}]. "
      f"Known: {', '.join(sorted(splits))}"
    )
  if split not in splits:
    raise unknown(f"split of the data set {name}", split, splits)
  return sorted(splits[split])
