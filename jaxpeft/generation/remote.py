"""An `Ask` over a server that speaks OpenAI's protocol: vLLM, llama.cpp, Ollama, ...

Conversations go to /chat/completions. Plain texts go to /completions, or where a server
lacks that, to /chat/completions as what a user says. The key, if a server wants one, is
read from an environment variable when it is needed and kept nowhere.
"""

import concurrent.futures
import dataclasses
import email.utils
import hashlib
import json
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from jaxpeft import console, optional
from jaxpeft.errors import InputError
from jaxpeft.generation import ends
from jaxpeft.generation.ask import Conversation, Reply, Request

_AGAIN = (408, 425, 429, 500, 502, 503, 504, 529)  # statuses after which to try again
_NO_SUCH_PATH = (404, 405, 501)
_LONGEST_WAIT_S = 300.0
_MOST = 16 * 2**20  # bytes of a response
_STOPS = 4  # texts that OpenAI's protocol allows; further ones are cut here


@dataclasses.dataclass(frozen=True)
class RemoteAsk:
  """An `Ask` whose model runs in a server.

  Token counts are the server's, and an answer's may include its end token. A
  log-probability is what the server gives: some apply the temperature first.

  Attributes:
    url: of the server, as http://127.0.0.1:8000/v1.
    model: its name there.
    max_new_tokens: most new tokens in a reply.
    temperature: 0 is greedy.
    seed: of the draws; a server may ignore it.
    concurrency: requests at a time.
    per_minute: most requests a minute; 0 is as many as there are.
    tries: of a request, if the server is busy or does not answer.
    timeout_s: seconds to wait for an answer.
    logprobs: ask for log-probabilities.
    key_variable: environment variable with the key; it may be unset.
    label: label of a progress bar on a terminal; None shows no bar.
    transport, sleep: of tests.
  """

  url: str
  model: str
  max_new_tokens: int = 64
  temperature: float = 0.0
  seed: int = 0
  concurrency: int = 8
  per_minute: float = 0.0
  tries: int = 6
  timeout_s: float = 600.0
  logprobs: bool = False
  key_variable: str = "OPENAI_API_KEY"
  label: str | None = None
  transport: Any = None
  sleep: Callable[[float], Any] = time.sleep

  def __post_init__(self):
    if self.concurrency < 1 or self.tries < 1 or self.per_minute < 0:
      raise InputError(
        "concurrency and tries must be at least 1, per_minute at least 0"
      )
    _address(self.url, None)

  def __call__(self, requests: list[Request]) -> list[Reply]:
    """The replies, in order.

    Raises:
      InputError: a request has a completion to score; or the server cannot be reached,
        refuses a request, or answers something else.
    """
    if any(request.completion is not None for request in requests):
      raise InputError(
        "a server only generates answers, and cannot score a given completion: use "
        "eval.choice=generation, or a model in this process"
      )
    need = "models on a server need httpx"
    httpx = optional.package("httpx", need, "remote")
    key = os.environ.get(self.key_variable, "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    base = _address(self.url, key)
    with httpx.Client(
      headers=headers, timeout=self.timeout_s, transport=self.transport
    ) as client:
      call = _Calls(self, client, base, key, httpx)
      with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
        jobs = [pool.submit(call, r, i) for i, r in enumerate(requests)]
        try:
          shown = console.progress(jobs, self.label, len(jobs), "answers")
          return [job.result() for job in shown]
        finally:
          call.stopped.set()
          for job in jobs:
            job.cancel()


class _Calls:
  """The requests of one call of a `RemoteAsk`."""

  def __init__(self, ask: RemoteAsk, client, base: str, key: str, httpx):
    self._ask, self._client, self._base, self._key = ask, client, base, key
    self._httpx, self._lock, self._next = httpx, threading.Lock(), 0.0
    self._chat_only = False
    self.stopped = threading.Event()

  def __call__(self, request: Request, place: int) -> Reply:
    body = self._body(request, place)
    prompt = request.prompt
    if isinstance(prompt, str) and not self._chat_only:
      given = body | dict(prompt=prompt)
      given |= dict(logprobs=1) if self._ask.logprobs else {}
      found = self._post("completions", given, _NO_SUCH_PATH)
      if found is not None:
        return _reply(found, request, chat=False)
      self._chat_only = True
    if isinstance(prompt, str):
      prompt = Conversation([dict(role="user", content=prompt)])
    body |= dict(messages=prompt.messages)
    body |= dict(tools=prompt.tools) if prompt.tools else {}
    body |= dict(logprobs=True) if self._ask.logprobs else {}
    return _reply(self._post("chat/completions", body, ()), request, chat=True)

  def _body(self, request: Request, place: int) -> dict:
    a, limit, heat = self._ask, request.max_new_tokens, request.temperature
    body = dict(
      model=a.model,
      max_tokens=a.max_new_tokens if limit is None else limit,
      temperature=a.temperature if heat is None else heat,
      seed=seed_of(a.seed, request.key or (place,)),
    )
    return body | (dict(stop=list(request.stop[:_STOPS])) if request.stop else {})

  def _post(self, path: str, body: dict, missing: tuple[int, ...]) -> dict | None:
    """The response; None if the server lacks that path."""
    reason = ""
    for attempt in range(self._ask.tries):
      self._wait_for_turn()
      after = None
      try:
        status, after, text = self._send(f"{self._base}/{path}", body)
        if status in missing:
          return None
        if status == 200:
          return _loads(text)
        reason = f"status {status}: {self._clean(text)}"
        if status not in _AGAIN:
          break
      except self._httpx.TransportError as e:
        reason = self._clean(f"{type(e).__name__}: {e}")
      if attempt + 1 < self._ask.tries and not self.stopped.is_set():
        self._ask.sleep(_pause(attempt, after))
    raise InputError(f"the server {self._base} does not answer /{path}: {reason}")

  def _send(self, url: str, body: dict) -> tuple[int, str | None, str]:
    if self.stopped.is_set():
      raise InputError("another request failed")
    with self._client.stream("POST", url, json=body) as response:
      text = bytearray()
      for some in response.iter_bytes():
        text += some
        if len(text) > _MOST:
          raise InputError(f"the server {self._base} sends over {_MOST} bytes")
      after = response.headers.get("retry-after")
      return response.status_code, after, text.decode("utf-8", "replace")

  def _wait_for_turn(self):
    if not self._ask.per_minute:
      return
    with self._lock:
      now = time.monotonic()
      wait = max(0.0, self._next - now)
      self._next = max(self._next, now) + 60 / self._ask.per_minute
    self._ask.sleep(wait)

  def _clean(self, text: str) -> str:
    """The start of a text on one line, without the key."""
    text = text.replace(self._key, "***") if self._key else text
    return " ".join(text.split())[:300]


def seed_of(seed: int, key: tuple[int, ...]) -> int:
  """A seed that differs for every key, below 2**31."""
  text = " ".join(map(str, (seed, *key)))
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def _address(url: str, key: str | None) -> str:
  """The address to which paths are added.

  Raises:
    InputError: it is none, holds a password, or would send a key unencrypted.
  """
  try:
    found = urllib.parse.urlsplit(url)
    host, _ = found.hostname, found.port
  except ValueError:
    found, host = urllib.parse.urlsplit(""), None
  if found.scheme not in ("http", "https") or not host or found.query:
    raise InputError(
      f"{_public(url)!r} is no address of a server; give one as "
      "http://127.0.0.1:8000/v1"
    )
  if "@" in found.netloc:
    raise InputError("an address must not hold a password; keys are in the environment")
  if key and found.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
    raise InputError(
      f"http://{host} would send the key unencrypted; give an https address, or unset "
      "the variable of the key"
    )
  path = found.path.rstrip("/") or "/v1"
  return f"{found.scheme}://{found.netloc}{path}"


def _public(url: str) -> str:
  return url.rpartition("@")[2][:200]


def _pause(attempt: int, after: str | None) -> float:
  """Seconds until the next try: what the server says, or longer each time."""
  wait = min(60.0, 2.0**attempt) * random.uniform(0.75, 1.25)
  if after:
    try:
      wait = float(after)
    except ValueError:
      try:
        then = email.utils.parsedate_to_datetime(after).timestamp()
        wait = then - time.time()
      except (ValueError, TypeError):
        pass
  return min(max(wait, 0.0), _LONGEST_WAIT_S) if wait == wait else 1.0


def _loads(text: str) -> dict:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise InputError("the server does not answer JSON; is it an OpenAI-compatible one?")
  return found


def _reply(found: dict | None, request: Request, chat: bool) -> Reply:
  """The reply in a response.

  Raises:
    InputError: it lacks what the protocol promises.
  """
  try:
    assert found is not None
    choice, usage = found["choices"][0], found["usage"]
    text = (choice["message"].get("content") if chat else choice["text"]) or ""
    tokens, before = usage["completion_tokens"], usage["prompt_tokens"]
    if not isinstance(text, str) or type(tokens) is not int or type(before) is not int:
      raise TypeError
  except (KeyError, IndexError, TypeError, AttributeError, AssertionError) as e:
    raise InputError(
      "the server's answer lacks choices or usage, with which tokens are counted"
    ) from e
  kept = ends.before(text, request.stop)
  ended = choice.get("finish_reason") != "length" or kept != text
  return Reply(kept, tokens, before, _logprob(choice, chat), ended, tokens)


def _logprob(choice: dict, chat: bool) -> float | None:
  given = choice.get("logprobs")
  try:
    if not isinstance(given, dict):
      return None
    if chat:
      return float(sum(x["logprob"] for x in given["content"]))
    return float(sum(x for x in given["token_logprobs"] if x is not None))
  except (KeyError, TypeError):
    return None
