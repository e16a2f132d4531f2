"""`Ask`: the interface through which evaluation and samples put prompts to a model."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from jaxpeft.data import contents
from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.errors import InputError
from jaxpeft.generation import decode, score
from jaxpeft.generation.sampling import Sampling
from jaxpeft.transformer.decoder import Transformer


class Conversation(NamedTuple):
  """A prompt that the tokenizer's chat template words: the assistant speaks next."""

  messages: list[dict]
  tools: list[dict] | None = None

  def __str__(self) -> str:
    """For people: a line "role: content" for each message."""
    lines = []
    for message in self.messages:
      lines.append(f"{message['role']}: {plain_content(message)}")
    return "\n".join(lines)


class Request(NamedTuple):
  """One prompt for a model."""

  prompt: str | Conversation
  completion: str | None = None  # is scored; None asks for an answer
  stop: tuple[str, ...] = ()  # texts that end an answer, besides the end token
  max_new_tokens: int | None = None  # None: the `Ask`'s own
  temperature: float | None = None  # None: the `Ask`'s own
  # What the draws depend on, besides the seed of the `Ask` and the prompt: numbers,
  # e.g. (problem, chain, operation). () is the request's place in the list.
  key: tuple[int, ...] = ()


class Reply(NamedTuple):
  """A model's answer to one request, with token counts."""

  text: str  # without the stop token or text
  tokens: int  # generated or scored, without the stop token
  prompt_tokens: int
  # In nats, summed over the tokens and, of an answer, its end token: of the model's own
  # distribution, whatever the temperature is. None if a server does not give it.
  logprob: float | None = None
  ended: bool = True  # by the end token or a stop text, not by max_new_tokens
  spent: int = 0  # tokens computed for an answer, with its end token or stop text


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
    batch_size: most requests answered at once; None or 0 is as many as memory holds.
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
    """The replies; completions of one prompt share its prefill."""
    out: list[Reply | None] = [None] * len(requests)
    free = [i for i, r in enumerate(requests) if r.completion is None]
    given = [i for i, r in enumerate(requests) if r.completion is not None]
    for some, found in ((free, self._generate), (given, self._score)):
      if some:
        for i, reply in zip(some, found([requests[i] for i in some]), strict=True):
          out[i] = reply
    return [reply for reply in out if reply is not None]

  def _generate(self, requests) -> list[Reply]:
    """Sorts the prompts by length; the draws of a row depend on its place in that."""
    ids = [prompt_ids(self.tokenizer, request.prompt) for request in requests]
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

  def _score(self, requests) -> list[Reply]:
    pairs = [
      completion_ids(self.tokenizer, request.prompt, request.completion)
      for request in requests
    ]
    prompts = list(dict.fromkeys(tuple(prompt) for prompt, _ in pairs))
    row = {prompt: i for i, prompt in enumerate(prompts)}
    asked: list[list[list[int]]] = [[] for _ in prompts]
    places = []
    for prompt, completion in pairs:
      own = asked[row[tuple(prompt)]]
      places.append((row[tuple(prompt)], len(own)))
      own.append(completion)
    found = score.score(
      self.transformer, self.params, list(map(list, prompts)), asked,
      self.batch_size, self.label,
    )  # fmt: skip
    return [
      Reply(request.completion, len(completion), len(prompt), found[i][j])
      for request, (prompt, completion), (i, j) in zip(
        requests, pairs, places, strict=True
      )
    ]


def prompt_ids(tokenizer: Tokenizer, prompt: str | Conversation) -> list[int]:
  """The tokens of a prompt, from which an answer goes on.

  Raises:
    InputError: the tokenizer has no chat template, or it refuses the conversation.
  """
  if isinstance(prompt, str):
    return tokenizer.encode(prompt, bos=True)
  source = tokenizer.template_for(prompt.tools)
  messages = contents.for_template(prompt.messages, source, tokenizer.special)
  return tokenizer.chat(messages, generation_prompt=True, tools=prompt.tools)[0]


def completion_ids(tokenizer: Tokenizer, prompt, completion: str):
  """(tokens of the prompt, tokens of the completion after it), as `data.encode` does.

  Both are tokenized together, unless that would change the prompt's tokens.

  Raises:
    InputError: the completion has no tokens.
  """
  before = prompt_ids(tokenizer, prompt)
  own = tokenizer.encode(completion)
  if isinstance(prompt, str):
    whole = tokenizer.encode(prompt + completion, bos=True)
    own = whole[len(before) :] if whole[: len(before)] == before else own
  if not own:
    raise InputError(f"the completion {completion!r} has no tokens to score")
  return before, own


def plain_content(message: dict) -> str:
  """The text of a message; of a list of parts, the texts of those that have one."""
  content = message.get("content")
  if isinstance(content, str):
    return content
  parts = [x if isinstance(x, str) else x.get("text") for x in content or ()]
  return "".join(part for part in parts if isinstance(part, str))
