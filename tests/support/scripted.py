"""A scripted stochastic model and its task, for tests of strategies and curves."""

import hashlib
import random

from jaxpeft.evaluation.strategies.chains import Problems
from jaxpeft.generation.ask import Reply


class Task:
  """The right answer is "right"; every other text is wrong."""

  RULES = ("strict",)

  def prompt(self, row, shots=()):
    return f"{len(shots)} shots, problem {row['number']}"

  def completions(self, row):
    return ()

  def cut(self, text):
    return text

  def gold(self, row):
    return "right"

  def answer(self, text, rule="strict"):
    return text or "[invalid]"

  def score(self, text, row):
    return {"strict": text == "right"}

  def roles(self, options):
    return Roles()


class Roles:
  """A prompt is an operation and the last solution."""

  stop = dict.fromkeys(("sample", "verify", "correct"), ())
  limit = dict.fromkeys(("sample", "verify", "correct"))

  def sample(self, row, shots=()):
    return f"sample {len(shots)}"

  def verify(self, row, history, answer):
    return f"verify {answer}"

  def correct(self, row, history):
    return f"correct {history[-1][0]}"

  def verdict(self, text):
    return text == "yes"

  def answer(self, text):
    return text


class Script:
  """An `Ask` with the rates of the Markov model, and a count of its calls.

  Texts depend on a request alone if `by_key`, and otherwise on a generator.
  """

  def __init__(self, p0, t, f, c, k, seed=0, by_key=False):
    self.rates = dict(sample=p0)
    self.rates |= {"verify right": t, "verify wrong": f}
    self.rates |= {"correct right": k, "correct wrong": c}
    self.random, self.by_key, self.calls, self.seen = random.Random(seed), by_key, 0, []

  def __call__(self, requests):
    self.calls += 1
    self.seen += requests if self.by_key else []
    return [self._reply(x) for x in requests]

  def _reply(self, request):
    op, _, last = request.prompt.partition(" ")
    op = op if op in ("verify", "correct") else "sample"
    rate = self.rates[op if op == "sample" else f"{op} {last[:5]}"]
    if self.by_key:
      digest = hashlib.sha256(repr(request.key).encode()).digest()
      hit = int.from_bytes(digest[:6]) / 2**48 < rate
      kind = digest[7] % 3
    else:
      hit, kind = self.random.random() < rate, 0
    if op == "verify":
      return Reply("yes" if hit else "no", 1, 3, spent=2)
    return Reply("right" if hit else f"wrong{kind}", 2, 5, spent=3)


def problems(count, task=None):
  """Problems of a task, by default the scripted one."""
  task = task or Task()
  return Problems(task, task.roles(None), [dict(number=i) for i in range(count)])
