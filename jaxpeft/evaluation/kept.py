"""Answers that are kept on disk, so that many runs of one base ask it only once.

An entry is named for the hash of everything that decides about the answers, of the
content of every weight above all. So a changed file of weights, another tokenizer,
prompt or option, or another version of JAX, is another entry. Damaged entries are made
again; `caches.disk` bounds them all.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

import jax

from jaxpeft import console, tree
from jaxpeft.caches import disk
from jaxpeft.checkpoints import json_file, run_state
from jaxpeft.data import fingerprint
from jaxpeft.errors import InputError
from jaxpeft.generation.ask import LocalAsk, Reply, Request
from jaxpeft.parallel import distributed

_CODE = 2  # to be raised when decoding or scoring gives other answers than before


@dataclasses.dataclass(frozen=True)
class KeptAsk:
  """An `Ask` that remembers what `ask` replied, also in other processes and later."""

  ask: LocalAsk

  def __call__(self, requests: list[Request]) -> list[Reply]:
    """The replies; says so in one line if they are kept from an earlier run."""
    if not disk.limit("answers"):
      return self.ask(requests)
    path = disk.folder("answers") / f"{_key(self.ask, requests)}.json"
    replies = _read(path, len(requests))
    # All processes must ask the model, or none of them: asking has collectives.
    found = distributed.exchange("" if replies is None else _digest(replies))
    if replies is not None and found[0] and len(set(found)) == 1:
      console.note(f"answers of the base are kept from an earlier run: {path}")
      disk.used(path)
      return replies
    replies = self.ask(requests)
    if distributed.is_main():
      _write(path, replies)
    return replies


def identity(model) -> dict[str, str]:
  """Plain values that differ between any two models that may reply differently.

  Args:
    model: has a transformer, params and a tokenizer: a `Model` or a `LocalAsk`.
  """
  flat, net = tree.flatten(model.params), model.transformer
  sums = jax.device_get(run_state.checksums(flat))
  weights = sorted((k, str(flat[k].dtype), *map(int, x)) for k, x in sums.items())
  return dict(
    model=repr((net.config, str(net.dtype))),
    weights=hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:32],
    tokenizer=fingerprint.of_tokenizer(model.tokenizer),
  )


def _key(ask: LocalAsk, requests: list[Request]) -> str:
  """A hash of all that the replies depend on; the size of the batches is no part."""
  about = dict(
    code=_CODE,
    jax=jax.__version__,
    platform=jax.default_backend(),
    **identity(ask),
    new=ask.max_new_tokens,
    sampling=dataclasses.astuple(ask.sampling),
    seed=ask.seed,
    requests=requests,
  )
  text = json.dumps(about, sort_keys=True, default=repr)
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: pathlib.Path, count: int) -> list[Reply] | None:
  """The replies of an entry; None if there is none, or it is damaged."""
  if not path.exists():
    return None
  with contextlib.suppress(InputError, KeyError, TypeError, ValueError):
    entry = json_file.read(path, "kept answers")
    replies = [Reply(*reply) for reply in entry["replies"]]
    if entry["sha256"] == _digest(replies) and len(replies) == count:
      return replies
  return None


def _write(path: pathlib.Path, replies: list[Reply]):
  """Writes an entry, and drops old ones. One that cannot be written is not kept."""
  entry = dict(sha256=_digest(replies), replies=replies)
  text = json.dumps(entry)
  if len(text) < json_file.MAX_BYTES:
    disk.write(path, lambda new: pathlib.Path(new).write_text(text))
    with contextlib.suppress(OSError):
      disk.drop(path.parent, disk.allowed("answers"))


def _digest(replies: list[Reply]) -> str:
  return hashlib.sha256(json.dumps(replies).encode()).hexdigest()
