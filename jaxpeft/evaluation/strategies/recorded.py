"""Replies kept in a file, so that a strategy that was stopped goes on where it was.

The file has a line of JSON for what it belongs to, and one for each reply, with the key
of its request and a hash of all that the model is asked. m and n are no part of that:
a larger m or n, or another strategy, goes on in the same file.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from jaxpeft import console
from jaxpeft.checkpoints import json_file
from jaxpeft.errors import InputError
from jaxpeft.evaluation import kept
from jaxpeft.generation.ask import Ask, Reply, Request
from jaxpeft.parallel import distributed


def about(config, model) -> dict[str, Any]:
  """What the replies of a model depend on besides the requests, for `Recorded`.

  Args:
    config: of the run.
    model: with parameters, of whose values this has a hash; or plain values that
      identify a model elsewhere, by name.
  """
  e = config.eval
  return (model if isinstance(model, dict) else kept.identity(model)) | dict(
    data=config.data.eval,
    task=e.task,
    shots=e.shots,
    seed=config.seed,
    max_new_tokens=e.max_new_tokens,
    top_k=e.top_k,
    top_p=e.top_p,
    min_p=e.min_p,
    repetition_penalty=e.repetition_penalty,
  )


@dataclasses.dataclass
class Recorded:
  """An `Ask` whose replies are kept in a file, see above.

  Attributes:
    ask: the model.
    path: of the file; it is made if it is missing.
    about: what the replies depend on besides the requests: plain values.
    block: most requests that are asked at once. Their replies are lost when the program
      is killed meanwhile.
  """

  ask: Ask
  path: pathlib.Path
  about: dict[str, Any]
  block: int = 512

  def __post_init__(self):
    """Reads the file.

    Raises:
      InputError: it is no such file, or it belongs to something else.
    """
    self._kept = _read(self.path, self.about)
    if self._kept:
      console.note(f"{self.path}: {len(self._kept)} replies are kept from before")

  def __call__(self, requests: list[Request]) -> list[Reply]:
    """The replies; the model is asked only for those that the file lacks."""
    names = [_name(request) for request in requests]
    missing = [i for i, name in enumerate(names) if name not in self._kept]
    # All processes must ask the model for the same, which has collectives.
    digest = hashlib.sha256(json.dumps(missing).encode()).hexdigest()
    if len(set(distributed.exchange(digest))) > 1:
      raise InputError(f"{self.path}: the processes see different files there")
    for start in range(0, len(missing), self.block):
      some = missing[start : start + self.block]
      replies = self.ask([requests[i] for i in some])
      lines = []
      for i, reply in zip(some, replies, strict=True):
        self._kept[names[i]] = reply
        lines.append(json.dumps(dict(key=names[i], reply=reply)) + "\n")
      if distributed.is_main():
        _append(self.path, "".join(lines))
    return [self._kept[name] for name in names]


def _name(request: Request) -> str:
  """The key of a request and a hash of the rest: "problem/chain/operation hash"."""
  text = json.dumps(request, sort_keys=True)
  digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
  return f"{'/'.join(map(str, request.key))} {digest[:16]}"


def _read(path: pathlib.Path, about: dict[str, Any]) -> dict[str, Reply]:
  """The replies in a file, whose last line may be cut; makes a missing file."""
  about = json.loads(json.dumps(about))
  head = (json.dumps(dict(about=about)) + "\n").encode()
  data = path.read_bytes() if path.exists() else b""
  if head.startswith(data) and head != data:  # killed as it wrote the first line
    if distributed.is_main():
      _append(path, head[len(data) :].decode())
    return {}
  whole = data[: data.rfind(b"\n") + 1]
  kept: dict[str, Reply] = {}
  number = 1
  try:
    first, *lines = whole.decode("utf-8").splitlines() or [""]
    there = json.loads(first)["about"]
    for number, line in enumerate(lines, 2):  # noqa: B007  for the message
      entry = json.loads(line)
      kept[entry["key"]] = Reply(*entry["reply"])
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise InputError(
      f"{path}, line {number}, is no reply of an earlier run: {type(e).__name__}; "
      "delete the file, or write to another one"
    ) from e
  if json_file.crc32(there) != json_file.crc32(about):
    other = there if isinstance(there, dict) else {}
    keys = [k for k in {**about, **other} if about.get(k) != other.get(k)]
    raise InputError(
      f"{path} has replies of another configuration ({', '.join(sorted(keys))} "
      "differs); write to another file with --out, or delete this one"
    )
  if len(whole) < len(data) and distributed.is_main():
    os.truncate(path, len(whole))
  return kept


def _append(path: pathlib.Path, text: str):
  with path.open("a", encoding="utf-8") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
