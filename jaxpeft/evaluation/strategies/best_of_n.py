"""Best of N: m samples, and a score that chooses one. `eval.by` names the score.

  verify        each sample is verified once; a vote among the accepted ones
  choice        the model chooses among all samples, at temperature 0
  logprob       the sample that the model finds likeliest
  mean_logprob  the same for each token, so that short samples have no advantage
  reward        the sample of the largest reward, by the model of `eval.reward`
The confidence is the share of the chosen answer among all samples.
"""

from jaxpeft.errors import InputError
from jaxpeft.evaluation.strategies import chains, rewards, votes
from jaxpeft.evaluation.strategies.chains import Call, Chain, Chosen, Options, Problems
from jaxpeft.generation.ask import Ask, Request

CHECKS = ("m", "by")
_LAST = 2**20  # number of an operation that no chain reaches


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """The chosen sample of each problem."""
  pick = BY[options.by]
  limits = [2 if pick is _verified else 1] * options.m
  heats = options.temperatures
  found = chains.run(problems, ask, limits, ("verify",), heats)
  picked, more = pick(problems, ask, options, found)
  out = []
  for own, best, calls in zip(found, picked, more, strict=True):
    said = _answers(problems, own, options)
    share = said.count(said[best]) / len(said)
    out.append(Chosen(own[best].calls[0].text, share, own, calls))
  return out


def _answers(problems: Problems, own: list[Chain], options: Options) -> list[str]:
  task = problems.task
  return [task.answer(task.cut(x.calls[0].text), options.rule) for x in own]


def _verified(problems, ask, options, found):
  picked = []
  for own in found:
    good = [i for i, chain in enumerate(own) if chain.accepted]
    picked.append(votes.majority(_answers(problems, own, options), good)[0])
  return picked, [[] for _ in found]


def _chosen(problems, ask, options, found):
  roles = problems.roles
  if not hasattr(roles, "choose"):
    raise InputError(
      "eval.by='choice': the roles of this task have no prompt to choose among "
      "solutions; use by=verify, logprob or mean_logprob"
    )
  requests = []
  for p, own in enumerate(found):
    prompt = roles.choose(problems.rows[p], [x.calls[0].said for x in own])
    requests.append(Request(prompt, temperature=0.0, key=(p, options.m, _LAST)))
  fit = [problems.fits(x) for x in requests]
  replies = iter(ask([x for x, good in zip(requests, fit, strict=True) if good]))
  picked, more = [], []
  for own, good in zip(found, fit, strict=True):
    # Without a readable choice, or room for the prompt, the samples vote.
    voted = votes.majority(_answers(problems, own, options))[0]
    if not good:
      picked.append(voted)
      more.append([])
      continue
    reply = next(replies)
    best = roles.chosen(reply.text, len(own))
    picked.append(voted if best is None else best)
    spent = reply.spent or reply.tokens
    call = Call("choose", reply.text, spent, reply.prompt_tokens, best, reply.logprob)
    more.append([call])
  return picked, more


def _likeliest(problems, ask, options, found):
  def score(chain: Chain) -> float:
    first = chain.calls[0]
    if first.logprob is None:
      raise InputError(
        f"eval.by={options.by!r}: the model gives no log-probabilities; use by=verify"
      )
    mean = options.by == "mean_logprob"
    return first.logprob / max(1, first.tokens if mean else 1)

  return [_best([score(x) for x in own]) for own in found], [[] for _ in found]


def _rewarded(problems, ask, options, found):
  scores = rewards.of_samples(problems, options, found)
  return [_best(own) for own in scores], [[] for _ in found]


def _best(scores: list[float]) -> int:
  return max(range(len(scores)), key=scores.__getitem__)


BY = {
  "verify": _verified,
  "choice": _chosen,
  "logprob": _likeliest,
  "mean_logprob": _likeliest,
  "reward": _rewarded,
}
