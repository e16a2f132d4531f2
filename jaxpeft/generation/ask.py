"""`Ask`: the interface through which evaluation and samples put prompts to a model."""

import dataclasses
import hashlib
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxpeft.data import contents
from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.errors import InputError
from jaxpeft.generation import ends, engine, score
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
    drafts: tokens that each step guesses, see `engine.draw`.
  """

  transformer: Transformer
  params: Any
  tokenizer: Tokenizer
  max_new_tokens: int = 64
  sampling: Sampling = Sampling()
  seed: int = 0
  batch_size: int | None = None
  label: str | None = None
  drafts: int = 0

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
    ids = [prompt_ids(self.tokenizer, request.prompt) for request in requests]
    stops = list(dict.fromkeys(request.stop for request in requests))
    keys = self._keys(requests, ids)
    jobs = []
    for request, prompt, key in zip(requests, ids, keys, strict=True):
      hot, most = request.temperature, request.max_new_tokens
      if hot is not None:
        dataclasses.replace(self.sampling, temperature=hot)  # raises if it is none
      jobs.append(
        engine.Job(
          prompt,
          self.max_new_tokens if most is None else most,
          key,
          self.sampling.temperature if hot is None else hot,
          stops.index(request.stop),
        )
      )
    out = engine.draw(
      self.transformer,
      self.params,
      jobs,
      [ends.of(self.tokenizer, stop) for stop in stops],
      self.sampling,
      self.batch_size,
      self.drafts,
      self.label,
    )
    replies = []
    for request, prompt, drawn in zip(requests, ids, out, strict=True):
      text, count, spent = ends.cut(self.tokenizer, drawn.tokens, request.stop)
      logprob = float(drawn.logprobs[:spent].sum())
      replies.append(Reply(text, count, len(prompt), logprob, drawn.ended, spent))
    return replies

  def _keys(self, requests, ids) -> np.ndarray:
    """uint32[n, 2], a PRNG key for each request.

    Without a key of its own it is that of its place among the prompts by length.
    """
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    split = jax.random.split(jax.random.key(self.seed), len(ids))
    keys = np.empty((len(ids), 2), np.uint32)
    keys[order] = np.asarray(jax.random.key_data(split))
    for i, request in enumerate(requests):
      if request.key:
        name = repr((self.seed, *map(int, request.key))).encode()
        digest = hashlib.blake2b(name, digest_size=8).digest()
        keys[i] = np.frombuffer(digest, "<u4")
    return keys

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
