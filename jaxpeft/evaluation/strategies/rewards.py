"""Rewards of samples, by a reward model of the options."""

from jaxpeft.errors import InputError
from jaxpeft.evaluation.strategies.chains import Chain, Options, Problems


def of_samples(
  problems: Problems, options: Options, found: list[list[Chain]]
) -> list[list[float]]:
  """The reward of the first sample of every chain, all asked for at once.

  A reward is of a prompt and a text. A reward that has `many` is given a list of such
  pairs instead.

  Raises:
    InputError: the options have no reward.
  """
  reward = options.reward
  if reward is None:
    raise InputError(
      "eval.by='reward' and eval.strategy=weighted_vote need a reward model: give "
      "eval.reward, a run that trained one; or use eval.by=verify or self_consistency"
    )
  pairs = []
  for p, own in enumerate(found):
    prompt = problems.roles.sample(problems.rows[p], problems.shown(p))
    pairs += [(prompt, chain.calls[0].text) for chain in own]
  many = getattr(reward, "many", None)
  scores = iter(many(pairs) if many else [reward(*pair) for pair in pairs])
  return [[float(next(scores)) for _ in own] for own in found]
