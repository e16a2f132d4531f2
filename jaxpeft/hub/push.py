"""Pushes a run to the hub: exports it, checks the export, writes a card, uploads."""

import json
import pathlib
from typing import NamedTuple

from jaxpeft import temporary
from jaxpeft.checkpoints import peft_config
from jaxpeft.errors import InputError
from jaxpeft.export import verify
from jaxpeft.hub import card, client, facts


class Options(NamedTuple):
  """What to push, and how."""

  format: str = "peft"  # or "hf", "gguf"
  base: str | None = None  # hub id of the base, if the run does not say
  license: str | None = None
  dtype: str | None = None  # these three: see `verify.export_run`
  rank: int | None = None
  tolerance: float | None = None


_DEFAULT = Options()


def write(workdir, repo: str, directory, options: Options = _DEFAULT) -> str:
  """The measured parity, after writing to a directory what would be pushed.

  Args:
    workdir: a finished run.
    repo: "org/name" where it will be.
    directory: does not exist, or is empty.
    options: see `Options`.
  Raises:
    InputError: the run is not finished, or cannot be exported so. Nothing is written.
  """
  client.check_name(repo, "--to")
  client.package()
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"{directory} is not empty; choose another --out")
  found = facts.of(workdir)
  base = options.base and client.check_name(options.base, "--base_model")
  base = base or found.base
  directory.parent.mkdir(parents=True, exist_ok=True)
  with temporary.directory(directory.parent, ".push-") as tmp:
    folder = pathlib.Path(tmp) / "files"
    target = folder
    if options.format == "gguf":
      folder.mkdir()
      target = folder / f"{repo.split('/')[1]}.gguf"
    parity = verify.export_run(
      workdir, options.format, target, options.dtype, options.rank, options.tolerance
    )
    if options.format == "peft":
      _name_base(folder, base or facts.short(found.config.model.source))
    text = card.make(found, repo, options.format, base, options.license, parity)
    (folder / "README.md").write_text(text, encoding="utf-8")
    if directory.exists():
      directory.rmdir()
    folder.rename(directory)
  return parity


def upload(directory, repo: str, private: bool, revision: str | None) -> str:
  """The address of a repository, after uploading a directory that `write` wrote.

  Args:
    directory: its files.
    repo: "org/name"; it is made if it is not there.
    private: whether to make it private, if it is made.
    revision: branch, which is made if it is not there; None is main.
  Raises:
    InputError: the hub refuses, or cannot be reached.
  """
  hub = client.package()
  with client.one_line(f"pushing to {repo}"):
    api = hub.HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    if revision:
      api.create_branch(repo, branch=revision, exist_ok=True)
    done = api.upload_folder(
      repo_id=repo,
      folder_path=str(directory),
      revision=revision,
      commit_message="Upload from jaxpeft",
    )
    return str(done.commit_url)


def _name_base(folder: pathlib.Path, base: str):
  """Names the base in adapter_config.json, instead of a path of this machine."""
  path = folder / peft_config.CONFIG
  values = json.loads(path.read_text())
  values["base_model_name_or_path"] = base
  path.write_text(json.dumps(values, indent=2) + "\n")
