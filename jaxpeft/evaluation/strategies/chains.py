"""Chains: a sample, then operations in turn until one verifies it, or the limit.

Chains are independent, and a chain with a smaller limit is the start of one with a
larger limit. So all (m, n) up to the largest are cut from one run; see `Chain.cut`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.evaluation.strategies.roles import OPERATIONS, Roles
from jaxpeft.generation.ask import Ask, Reply, Request

SETS = ("verify", "correct")  # the operations after the sample, again and again


class Options(NamedTuple):
  """What strategies read, with the meaning of the keys in `config.eval`."""

  m: int = 4
  n: int = 4
  vote_over: str = "all"
  by: str = "verify"
  temperatures: tuple[float, ...] = (0.7, 0.7, 0.7)  # of sample, verify, correct
  rule: str = "strict"  # of the task, by which answers are the same
  reward: Callable[[Any, str], float] | None = None  # (prompt, text) -> score


class Problems(NamedTuple):
  """What is asked."""

  task: Any
  roles: Roles
  rows: Sequence[dict]
  shots: Sequence[Sequence[dict]] = ()  # for each row; () shows none
  fits: Callable[[Request], bool] = lambda request: True  # into the model's positions

  def shown(self, problem: int) -> Sequence[dict]:
    """The shots of a problem."""
    return self.shots[problem] if self.shots else ()


class Call(NamedTuple):
  """One call of the model."""

  op: str  # "sample", "verify", "correct", "choose"
  text: str
  tokens: int  # output tokens, with the end token or stop text
  prompt_tokens: int
  said: Any  # of a verify its verdict, of others the solution for later prompts
  logprob: float | None = None


class Cut(NamedTuple):
  """The end of a chain had it had fewer calls."""

  text: str  # of the last solution
  accepted: bool  # whether the last call verified it
  tokens: int  # of all calls
  calls: int
  logprob: float | None  # of the last solution


@dataclasses.dataclass(slots=True)
class Chain:
  """The calls of one chain, in order."""

  calls: list[Call] = dataclasses.field(default_factory=list)
  full: bool = False  # it ended because its next prompt had not fit into the model

  @property
  def accepted(self) -> bool:
    """Whether the last call is a verify that says yes; then the chain has ended."""
    last = self.calls[-1] if self.calls else None
    return last is not None and last.op == "verify" and last.said

  def cut(self, calls: int) -> Cut:
    """The chain with at most that many calls; SETS has 1 + 2 n of them."""
    kept = self.calls[:calls]
    last = next(x for x in reversed(kept) if x.op != "verify")
    tokens = sum(x.tokens for x in kept)
    return Cut(last.text, Chain(kept).accepted, tokens, len(kept), last.logprob)

  def history(self) -> list[tuple[str, str]]:
    """(solution, analysis) pairs since the last sample; "" where there is none."""
    pairs = []
    for call in self.calls:
      if call.op == "verify":
        pairs[-1] = (pairs[-1][0], call.text.strip())
      else:
        pairs = [] if call.op == "sample" else pairs
        pairs.append((call.said, ""))
    return pairs


class Chosen(NamedTuple):
  """What a strategy answers to one problem."""

  text: str
  confidence: float  # the answer's share of the votes
  chains: list[Chain]
  more: list[Call] = []  # noqa: RUF012  calls of no chain; nobody changes it


def run(
  problems: Problems,
  ask: Ask,
  limits: Sequence[int],
  cycle: Sequence[str] = SETS,
  temperatures: Sequence[float] = Options().temperatures,
) -> list[list[Chain]]:
  """The chains of every problem.

  The next operations of all chains that go on are one list of requests, whatever
  problems they are of. A chain whose next prompt does not fit into the model ends.

  Args:
    problems: what is asked.
    ask: the model.
    limits: for each chain of a problem, the most calls, at least 1.
    cycle: the operations after the first sample, which begin again after the last one.
    temperatures: of sample, verify and correct.
  Raises:
    InputError: the prompt of a first sample does not fit.
  """
  heats: dict[str, float] = dict(zip(OPERATIONS, temperatures, strict=True))
  found = [[Chain() for _ in limits] for _ in problems.rows]
  live = [(p, c, chain) for p, some in enumerate(found) for c, chain in enumerate(some)]
  for number in range(max(limits, default=0)):
    live = [x for x in live if number < limits[x[1]] and not x[2].accepted]
    op = cycle[(number - 1) % len(cycle)] if number else "sample"
    asked = [_request(problems, x, op, heats[op], number) for x in live]
    fit = [problems.fits(request) for request in asked]
    for (p, _, chain), good in zip(live, fit, strict=True):
      chain.full = not good
      if chain.full and not number:
        raise InputError(
          f"problem {p + 1}: the prompt of a sample and its answer exceed the model's "
          "positions; lower eval.shots or eval.max_new_tokens, or leave such rows out"
        )
    asked = [request for request, good in zip(asked, fit, strict=True) if good]
    live = [x for x in live if not x[2].full]
    if not live:
      break
    console.note(f"{op}, call {number + 1} of a chain: {len(asked)} prompts ...")
    replies = ask(asked)
    for (_, _, chain), reply in zip(live, replies, strict=True):
      chain.calls.append(call(problems.roles, op, reply))
  return found


def _request(problems: Problems, of, op: str, heat: float, number: int) -> Request:
  p, c, chain = of
  roles, row = problems.roles, problems.rows[p]
  if op == "sample":
    prompt = roles.sample(row, problems.shown(p))
  elif op == "correct":
    prompt = roles.correct(row, chain.history())
  else:
    *before, (answer, _) = chain.history()
    prompt = roles.verify(row, before, answer)
  key = (p, c, number)
  return Request(prompt, None, roles.stop[op], roles.limit[op], heat, key)


def call(roles: Roles, op: str, reply: Reply) -> Call:
  """A reply as a call of an operation."""
  said = roles.verdict(reply.text) if op == "verify" else roles.answer(reply.text)
  # An `Ask` that does not say what it spent has at least the reply's tokens.
  tokens = reply.spent or reply.tokens
  return Call(op, reply.text, tokens, reply.prompt_tokens, said, reply.logprob)


def counters(calls: Iterable[Call]) -> dict[str, dict[str, int]]:
  """{operation: {calls, input_tokens, output_tokens}}, summed."""
  found: dict[str, dict[str, int]] = {}
  for x in calls:
    own = found.setdefault(x.op, dict(calls=0, input_tokens=0, output_tokens=0))
    own["calls"] += 1
    own["input_tokens"] += x.prompt_tokens
    own["output_tokens"] += x.tokens
  return found
