"""`Ask`: the interface through which evaluation and samples put prompts to a model."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.generation import decode
from jaxpeft.generation.sampling import Sampling
from jaxpeft.transformer.decoder import Transformer


class Request(NamedTuple):
  """One prompt for a model."""

  prompt: str


class Reply(NamedTuple):
  """A model's answer to one request, with token counts."""

  text: str  # without the stop token
  tokens: int  # generated, without the stop token
  prompt_tokens: int


class Ask(Protocol):
  """Function that returns one reply for each request, in order."""

  def __call__(self, requests: list[Request]) -> list[Reply]: ...


@dataclasses.dataclass(frozen=True)
class LocalAsk:
  """An `Ask` whose model runs in this process.

  Attributes:
    transformer, params, tokenizer: the model.
    max_new_tokens: most new tokens in a reply.
    sampling: how each token is drawn.
    seed: seed of the draws.
    batch_size: number of requests decoded at once; None decodes all at once.
    label: label of a progress bar on a terminal; None shows no bar.
  """

  transformer: Transformer
  params: Any
  tokenizer: Tokenizer
  max_new_tokens: int = 64
  sampling: Sampling = Sampling()
  seed: int = 0
  batch_size: int | None = None
  label: str | None = None

  def __call__(self, requests: list[Request]) -> list[Reply]:
    """The replies; sorts the prompts by length, so that a batch has little padding."""
    ids = [self.tokenizer.encode(request.prompt, bos=True) for request in requests]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = decode.generate(
      self.transformer,
      self.params,
      [ids[i] for i in order],
      self.max_new_tokens,
      self.tokenizer.eos_ids,
      self.sampling,
      self.seed,
      self.batch_size,
      self.label,
    )
    new = dict(zip(order, out, strict=True))
    return [
      Reply(self.tokenizer.decode(new[i]), len(new[i]), len(ids[i]))
      for i in range(len(ids))
    ]
