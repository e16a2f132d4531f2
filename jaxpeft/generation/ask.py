"""Text in, text and token counts out: whoever asks a model goes through `Ask`."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.generation import decode
from jaxpeft.generation.sampling import Sampling
from jaxpeft.transformer.decoder import Transformer


class Request(NamedTuple):
  """What is asked."""

  prompt: str


class Reply(NamedTuple):
  """What came back."""

  text: str  # without the stop token
  tokens: int  # generated, without the stop token
  prompt_tokens: int


class Ask(Protocol):
  """Asks a model: one reply for each request, in their order."""

  def __call__(self, requests: list[Request]) -> list[Reply]: ...


@dataclasses.dataclass(frozen=True)
class LocalAsk:
  """An `Ask` of a model in this process.

  Attributes:
    transformer, params, tokenizer: the model.
    max_new_tokens: the most new tokens of a reply.
    sampling: how tokens are drawn.
    seed: seed of the draws.
    batch_size: requests decoded at once; None is all.
    label: name of a progress bar on a terminal; None shows no bar.
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
    """Decodes in the order of prompt length, so that a batch has little padding."""
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
