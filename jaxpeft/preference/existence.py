"""Whether the likelihood has one maximum, and if not, why.

All models here are log-concave. Their likelihood has a maximum unless the utilities can
move in some direction for ever and no observation ever becomes less likely. For
utilities of items this is a question about the graph with an edge from every winner to
every loser: one maximum exists exactly if each item can be reached from each other one.
For utilities that are linear in features, and for models with ties, a linear program
looks for the direction.

Sources: Ford 1957; Hunter 2004, assumption 1; Albert and Anderson 1984.
"""

import numpy as np

from jaxpeft.preference.choices import Choices
from jaxpeft.preference.models import Model

_SHOWN = 5  # items that a message names


def reason(
  choices: Choices, model: Model, features: np.ndarray | None, alpha: float
) -> str | None:
  """Why there is no maximum, as the beginning of a message; None if there is one.

  Args:
    choices, model: what is fitted.
    features: float[I, F], or None for a utility of each item.
    alpha: the precision of the prior; with one, only ties can lack a maximum.
  """
  if model.ties and not (len(choices.ranked) and len(choices.tied)):
    what = "tie" if len(choices.ranked) else "win"
    return f"a model of ties {model.ties!r} needs ties and wins, but no {what} is there"
  if alpha:
    return None
  if features is None:
    why = _not_connected(choices)
    return why or (_separated_ties(choices) if model.ties else None)
  return _separated(choices, model, features)


def _not_connected(choices: Choices) -> str | None:
  """Which items never lost, never won or never met the others."""
  from scipy.sparse import csgraph

  winner, loser = _neighbors(choices)
  one, other = choices.tied.T
  winner, loser = (
    np.concatenate([winner, one, other]),
    np.concatenate([loser, other, one]),
  )
  graph = _graph(winner, loser, choices.items)
  parts, part = csgraph.connected_components(graph, connection="strong")
  if parts == 1:
    return None
  groups, group = csgraph.connected_components(graph, directed=False)
  if groups > 1:
    few = np.argmin(np.bincount(group))
    some, others = _named(choices, group == few), _named(choices, group != few)
    return f"{some} never met any other item ({others})"
  between = part[winner] != part[loser]
  lost = np.bincount(part[loser[between]], minlength=parts)
  won = np.bincount(part[winner[between]], minlength=parts)
  top, bottom = np.flatnonzero(lost == 0)[0], np.flatnonzero(won == 0)[0]
  tied = " or tied" if len(choices.tied) else ""
  if (part == top).sum() <= (part == bottom).sum():
    return f"{_named(choices, part == top)} never lost to any other item{tied}"
  return f"{_named(choices, part == bottom)} never won over any other item{tied}"


def _neighbors(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
  """(winners, losers) of neighbors in rankings, from which all others follow."""
  there = choices.ranked[:, 1:] >= 0
  return choices.ranked[:, :-1][there], choices.ranked[:, 1:][there]


def _graph(winner, loser, items: int):
  from scipy import sparse

  ones = np.ones(len(winner))
  return sparse.csr_array((ones, (winner, loser)), shape=(items, items))


def _separated_ties(choices: Choices) -> str | None:
  """Whether differences and the tie parameter can grow together."""
  from scipy import sparse

  def differences(rows):
    at, signs = np.arange(len(rows)), np.repeat([1.0, -1.0], len(rows))
    places = (np.tile(at, 2), rows.T.reshape(-1))
    return sparse.csr_array((signs, places), shape=(len(rows), choices.items))

  rows = _with_ties(differences(choices.ranked), differences(choices.tied))
  direction = _direction(rows)
  if direction is None:
    return None
  high = direction[:-1] > direction[:-1].mean()
  return (
    "no observation speaks against ever larger differences between "
    f"{_named(choices, high)} and the others, together with ever more ties"
  )


def _with_ties(won, tied):
  """Rows over (utilities, tie parameter) that must not fall, for wins and for ties."""
  from scipy import sparse

  def beside(rows, sign):
    column = np.full((rows.shape[0], 1), sign)
    return sparse.hstack([sparse.csr_array(rows), sparse.csr_array(column)])

  return sparse.vstack([beside(won, -1.0), beside(tied, 1.0), beside(-tied, 1.0)])


def _separated(choices: Choices, model: Model, features: np.ndarray) -> str | None:
  """Whether features are not identified, or order the choices without a mistake."""
  scale = features.std(0)
  flat = np.flatnonzero(scale <= 1e-12 * np.abs(features).max(0, initial=0.0))
  if len(flat):
    return f"feature {flat[0]} has the same value for all items"
  x = (features - features.mean(0)) / scale
  winner, loser = _neighbors(choices)
  won = np.unique(x[winner] - x[loser], axis=0)
  tied = x[choices.tied[:, 0]] - x[choices.tied[:, 1]]
  rows = np.concatenate([won, tied])
  _, size, vt = np.linalg.svd(np.linalg.qr(rows, mode="r"))
  if len(size) < x.shape[1] or size[-1] <= 1e-9 * size[0]:
    which = _listed(vt[-1])
    return (
      f"the choices do not tell features {which} apart: they are linearly dependent"
    )
  direction = _direction(_with_ties(won, tied) if model.ties else won)
  if direction is None:
    return None
  return (
    f"no choice speaks against ever larger coefficients of features "
    f"{_listed(direction[: x.shape[1]])}: they order all choices without a mistake"
  )


def _direction(rows) -> np.ndarray | None:
  """A direction along which no row of a matrix falls and some rise, or None."""
  from scipy import optimize, sparse

  count, rows = rows.shape[0], sparse.csr_array(rows)
  found = optimize.linprog(
    -np.asarray(rows.sum(0)).reshape(-1),
    A_ub=sparse.vstack([rows, -rows]),
    b_ub=np.concatenate([np.ones(count), np.zeros(count)]),
    bounds=(None, None),
    method="highs",
  )
  # Where a direction exists, it can be scaled until its steepest row rises by 1.
  return found.x if found.x is not None and -found.fun > 0.5 else None


def _named(choices: Choices, chosen: np.ndarray) -> str:
  """Items in words: item 3, or items 1, 2, 3, 4, 5 and 12 others."""
  at = np.flatnonzero(chosen)
  text = ", ".join(choices.name(int(i)) for i in at[:_SHOWN])
  more = f" and {len(at) - _SHOWN} others" if len(at) > _SHOWN else ""
  return f"item{'s' * (len(at) > 1)} {text}{more}"


def _listed(direction: np.ndarray) -> str:
  """The features of a direction, the largest coefficients first."""
  order = np.argsort(-np.abs(direction), kind="stable")
  kept = [i for i in order if abs(direction[i]) > 1e-3 * abs(direction[order[0]])]
  more = f" and {len(kept) - _SHOWN} others" if len(kept) > _SHOWN else ""
  return ", ".join(str(int(i)) for i in kept[:_SHOWN]) + more
