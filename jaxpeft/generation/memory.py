"""How much memory decoding needs for each row, and how much there is."""

import pathlib

import jax
import jax.numpy as jnp

from jaxpeft.parallel import distributed, sharding
from jaxpeft.transformer.decoder import Transformer

SCORES = 2**25  # bytes that attention's blocks of scores need, whatever the batch is
_SHARE = 0.5  # of what is free, that decoding may take
_DRAWING = 8  # arrays of the logits' size that sorting and drawing need
_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def row_bytes(transformer: Transformer, slots: int, new: int, logits: int = 1) -> int:
  """Bytes that one row of a batch needs while it is decoded or scored.

  They are the cache, the keys and values of the prompt from which it is made, the
  activations of one layer while the prompt is read, and the logits.

  Args:
    transformer: the model.
    slots: tokens to which the prompt is padded.
    new: new tokens.
    logits: number of positions whose logits exist at once.
  """
  c, size = transformer.config, jnp.dtype(transformer.dtype).itemsize
  token = 2 * c.depth * c.kv_heads * c.head_dim * size
  ff = c.ff * max(1, c.experts_per_token)
  activations = slots * size * (6 * c.width + 3 * ff + 3 * c.heads * c.head_dim)
  return (
    (2 * slots + new) * token + activations + 4 * c.vocab_size * (_DRAWING + logits)
  )


def budget() -> int:
  """Bytes that rows may take: half of what is free, in all of a mesh's devices.

  It is the same in every process, and leaves room for `SCORES`.
  """
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  if all("bytes_limit" in x for x in stats):
    least = min(x["bytes_limit"] - x.get("bytes_in_use", 0) for x in stats)
    free = least * sharding.cut("batch")
  else:
    free = host_free()
  least = min(map(int, distributed.exchange(str(int(free)))))
  return max(0, int(_SHARE * least) - SCORES)


def host_free(proc: pathlib.Path = pathlib.Path("/proc"), groups=_CGROUPS) -> int:
  """Bytes of memory that this process can still get: the machine's or its cgroup's.

  A system that does not say counts as having 4 GiB.

  Args:
    proc, groups: where Linux mounts its information; for tests.
  """
  found = [*_machine(proc / "meminfo"), *_cgroup(proc / "self" / "cgroup", groups)]
  return max(0, min(found, default=4 << 30))


def _machine(path: pathlib.Path):
  """Yields what the whole machine has available."""
  for line in _text(path).splitlines():
    if line.startswith("MemAvailable:"):
      yield 1024 * int(line.split()[1])


def _cgroup(path: pathlib.Path, root: pathlib.Path):
  """Yields what is left of the limit of this process's cgroups, of version 2 and 1."""
  for line in _text(path).splitlines():
    _, controllers, name = line.split(":", 2)
    if controllers == "":
      top, limit, usage, cached = root, "max", "current", "inactive_file"
    elif "memory" in controllers.split(","):
      top, limit, usage = root / "memory", "limit_in_bytes", "usage_in_bytes"
      cached = "total_inactive_file"
    else:
      continue
    own = top / name.strip("/")
    # In a container the files of its own group may be at the top.
    for place in (own, *(p for p in own.parents if p == top or top in p.parents)):
      most, used = (_text(place / f"memory.{x}").strip() for x in (limit, usage))
      if most.isdigit() and used.isdigit():
        stat = dict(x.split(" ", 1) for x in _text(place / "memory.stat").splitlines())
        yield int(most) - int(used) + int(stat.get(cached, 0))


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text()
  except (OSError, ValueError):
    return ""
