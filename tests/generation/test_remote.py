"""An `Ask` over a server: what is sent, what is tried again, and what is refused."""

import email.utils
import json
import threading
import time

import pytest

from jaxpeft.errors import InputError
from jaxpeft.generation import remote
from jaxpeft.generation.ask import Conversation, Request

httpx = pytest.importorskip("httpx")
CHAT = Conversation([dict(role="user", content="Hi")])
URL = "http://127.0.0.1:9/v1"


class Server:
  """Answers with the prompt in capitals, after some failures; keeps what it got."""

  def __init__(self, *failures, chat_only=False, together=1):
    self.failures, self.chat_only, self.seen = list(failures), chat_only, []
    self.lock, self.now, self.most, self.begun = threading.Lock(), 0, 0, 0
    self.together = threading.Barrier(together, timeout=300)

  def __call__(self, request):
    with self.lock:
      self.now += 1
      self.most = max(self.most, self.now)
      self.begun += 1
      first = self.begun <= self.together.parties
    if first:  # none is answered before so many have come
      self.together.wait()
    with self.lock:
      self.now -= 1
      body = json.loads(request.content)
      self.seen.append((request.url.path, body, dict(request.headers)))
      if self.failures:
        failure = self.failures.pop(0)
        if isinstance(failure, Exception):
          raise failure
        return failure
    chat = request.url.path.endswith("/chat/completions")
    if not chat and self.chat_only:
      return httpx.Response(404)
    usage = dict(prompt_tokens=3, completion_tokens=5)
    if chat:
      text = body["messages"][-1]["content"].upper()
      logprobs = dict(content=[dict(logprob=-0.5), dict(logprob=-1.0)])
      choice = dict(message=dict(content=text), logprobs=logprobs)
    else:
      logprobs = dict(token_logprobs=[None, -0.25])
      choice = dict(text=body["prompt"].upper(), logprobs=logprobs)
    choice["finish_reason"] = "length" if body["max_tokens"] == 1 else "stop"
    return httpx.Response(200, json=dict(choices=[choice], usage=usage))


def ask(server, **options):
  waits = []
  transport = httpx.MockTransport(server)
  made = remote.RemoteAsk(URL, "m", transport=transport, sleep=waits.append, **options)
  return made, waits


def test_texts_and_conversations_are_answered_in_order():
  server = Server(together=4)
  made, _ = ask(server, concurrency=4, max_new_tokens=7, temperature=0.5)
  requests = [Request(f"t{i}") for i in range(20)] + [Request(CHAT)]
  replies = made(requests)
  assert [r.text for r in replies] == [f"T{i}" for i in range(20)] + ["HI"]
  assert {(r.tokens, r.prompt_tokens, r.spent, r.ended) for r in replies} == {
    (5, 3, 5, True)
  }
  assert [r.logprob for r in replies] == [-0.25] * 20 + [-1.5]
  assert {path for path, _, _ in server.seen} == {
    "/v1/completions",
    "/v1/chat/completions",
  }
  assert server.most == 4
  for _, body, _ in server.seen:
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.5)


def test_a_requests_own_options_and_its_key_are_sent():
  server = Server()
  made, _ = ask(server, concurrency=1, seed=3)
  stops = ("Q", "B", "E", "R", "T")
  first = Request("a T b", stop=stops, max_new_tokens=1, temperature=1.5, key=(4, 2))
  replies = made([first, Request("x", key=(4, 2)), Request("x", key=(4, 3))])
  body = server.seen[0][1]
  assert body["stop"] == list(stops[:4])  # the protocol has no more
  assert (body["max_tokens"], body["temperature"]) == (1, 1.5)
  assert replies[0].text == "A "
  assert replies[0].ended  # by a stop text that only we know
  seeds = [body["seed"] for _, body, _ in server.seen]
  assert seeds[0] == seeds[1] != seeds[2]
  assert (
    remote.seed_of(3, (4, 2)) != remote.seed_of(4, (4, 2)) != remote.seed_of(3, (42,))
  )
  assert not ask(server)[0]([Request("x", max_new_tokens=1)])[0].ended


def test_a_server_without_completions_is_asked_as_a_chat():
  server = Server(chat_only=True)
  made, _ = ask(server, concurrency=1)
  assert [r.text for r in made([Request("a"), Request("b")])] == ["A", "B"]
  paths = [path for path, _, _ in server.seen]
  assert paths == ["/v1/completions", "/v1/chat/completions", "/v1/chat/completions"]


def test_a_busy_server_is_asked_again_after_what_it_says():
  date = email.utils.formatdate(time.time() + 290, usegmt=True)
  server = Server(
    httpx.Response(429, headers={"Retry-After": "7"}),
    httpx.Response(503, headers={"Retry-After": date}),
    httpx.ReadTimeout("slow"),
    httpx.Response(500),
    httpx.Response(429, headers={"Retry-After": "1e9"}),
  )
  made, waits = ask(server, concurrency=1)
  assert made([Request("a")])[0].text == "A"
  assert waits[0] == 7
  assert 10 < waits[1] <= 291
  assert 3 <= waits[2] <= 5 < waits[3] <= 10
  assert waits[4] == 300


def test_it_gives_up_in_one_line_without_the_key(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
  echo = httpx.Response(401, text="bad key\nsk-secret")
  server = Server(echo)
  made, waits = ask(server)
  with pytest.raises(InputError, match="status 401: bad key") as error:
    made([Request("a")])
  assert server.seen[0][2]["authorization"] == "Bearer sk-secret"
  assert not waits
  assert "sk-secret" not in str(error.value) + repr(made)
  for failure in (httpx.Response(500), httpx.ConnectError("no sk-secret")):
    server = Server(*[failure] * 3)
    made, waits = ask(server, tries=3, concurrency=1)
    with pytest.raises(InputError, match="does not answer /completions") as error:
      made([Request("a"), Request("b")])
    assert len(waits) == 2
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
  ("response", "message"),
  [
    (dict(text="<html>"), "not answer JSON"),
    (dict(json=dict(choices=[])), "lacks choices or usage"),
    (dict(json=dict(choices=[dict(text="a")])), "lacks choices or usage"),
    (dict(json=dict(choices=[dict(text=3)], usage={})), "lacks choices or usage"),
    (dict(content=b" " * (17 * 2**20)), "sends over"),
  ],
)
def test_what_is_no_answer_is_refused(response, message):
  with pytest.raises(InputError, match=message):
    ask(Server(httpx.Response(200, **response)))[0]([Request("a")])


def test_completions_are_refused_before_anything_is_sent():
  server = Server()
  with pytest.raises(InputError, match="cannot score"):
    ask(server)[0]([Request("a"), Request("a", "b")])
  assert not server.seen


@pytest.mark.parametrize(
  "url", ["", "host:80", "ftp://a/v1", "http://", "http://a:b", "http://u:pw@a/v1"]
)
def test_bad_addresses_are_refused(url):
  with pytest.raises(InputError) as error:
    remote.RemoteAsk(url, "m")
  assert "pw" not in str(error.value).replace("password", "")


def test_a_key_is_not_sent_unencrypted(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
  made = remote.RemoteAsk(
    "http://example.com", "m", transport=httpx.MockTransport(Server())
  )
  with pytest.raises(InputError, match="unencrypted"):
    made([Request("a")])


def test_a_rate_limit_spaces_requests():
  made, waits = ask(Server(), per_minute=60, concurrency=1)
  made([Request("a")] * 3)
  assert waits[0] == 0
  assert 0.9 < waits[1] <= 1 < waits[2] <= 2
