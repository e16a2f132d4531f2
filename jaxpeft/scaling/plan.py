"""What a budget of FLOPs buys under a law: sizes, loss, and hours of devices.

The interval of a loss shows how uncertain the law's constants are. It does not say
whether the law holds for another tokenizer, for other data, or far beyond the fitted
sizes. `notes` says where a plan is beyond them.

Peaks are dense products in bfloat16 (float16 where a card has no bfloat16), from the
data sheets of NVIDIA, AMD and Google.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jaxpeft import plotting
from jaxpeft.errors import InputError, unknown
from jaxpeft.scaling.laws import (
  FLOPS,
  PUBLISHED,
  Fitted,
  Parametric,
  WithoutEmbedding,
  files,
)

CARDS = {  # name -> FLOPs per second
  "v100": 125e12,
  "t4": 65e12,
  "a10": 125e12,
  "l4": 121e12,
  "l40s": 362e12,
  "rtx3090": 71e12,
  "rtx4090": 165e12,
  "a100-40gb": 312e12,
  "a100-80gb": 312e12,
  "h100": 989e12,
  "h100-pcie": 756e12,
  "h200": 989e12,
  "b200": 2250e12,
  "mi250x": 383e12,
  "mi300x": 1307e12,
  "v4": 275e12,
  "v5e": 197e12,
  "v5p": 459e12,
  "v6e": 918e12,
}
LEAST, MOST = 1e6, 1e40  # of a budget


class Value(NamedTuple):
  """A number with the ends of its interval; None where nothing gives one."""

  value: float | None
  low: float | None = None
  high: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a budget buys.

  flops: the budget C.
  n: parameters; d: tokens; ratio: tokens for each parameter.
  loss: in nats per token.
  penalty: how far the loss of a given size is above the best loss, in nats.
  shape: (width, depth), if the law says them.
  device_hours: of one device.
  notes: sentences about what not to trust.
  """

  flops: float
  n: Value
  d: Value
  ratio: Value
  loss: Value
  penalty: float | None
  shape: tuple[int, int] | None
  device_hours: float
  notes: tuple[str, ...]


def named(law: str) -> Fitted:
  """A law of the literature by name, or of a JSON file.

  Raises:
    InputError: there is no such law, or the file holds none.
  """
  if law in PUBLISHED:
    return PUBLISHED[law]
  if law.lower().endswith(".json"):
    return files.read(law)
  raise unknown("law", law, [*PUBLISHED, "FILE.json"])


def peak(card: str) -> float:
  """FLOPs per second of a card in bfloat16.

  Raises:
    InputError: the card is unknown.
  """
  if card not in CARDS:
    raise unknown("card", card, CARDS)
  return CARDS[card]


def plan(
  fitted: Fitted,
  flops: float,
  card: str = "h100",
  mfu: float = 0.4,
  n: float | None = None,
  level: float = 0.95,
) -> Plan:
  """The best sizes for a budget, or the loss of a given size.

  Args:
    fitted: the law.
    flops: the budget, C = 6 N D.
    card: a key of CARDS.
    mfu: the share of the card's peak that training reaches, counting 6 N D FLOPs.
    n: parameters; default the best for the budget.
    level: of the intervals.
  Raises:
    InputError: a number is out of range, or the law has no optimum.
  """
  law = fitted.law
  if not LEAST <= flops <= MOST:  # NaN, too
    raise InputError(f"--flops={flops:g} is not from {LEAST:g} to {MOST:g} FLOPs")
  if not 0 < mfu <= 1:
    raise InputError(f"--mfu={mfu:g} is not above 0 and at most 1; 0.4 is common")
  if not 0 < level < 1:
    raise InputError(f"--level={level:g} is not between 0 and 1, e.g. 0.95")
  if not hasattr(law, "optimum"):
    raise InputError(
      f"a law of the kind {type(law).__name__} says nothing of a budget; use another "
      "--law, such as epoch"
    )
  hours = flops / peak(card) / mfu / 3600

  def at(law):  # of a law whose numbers may be arrays
    size, tokens = law.optimum(flops) if n is None else (n, flops / FLOPS / n)
    return size, tokens, law.frontier(flops) if n is None else law.loss(size, tokens)

  if n is not None:
    _check_size(law, n, flops)
  drawn = fitted.draws()
  try:
    with np.errstate(all="ignore"):  # checked below
      best, lowest = at(law), law.frontier(flops)
      spread = None if drawn is None else at(drawn)
    good = all(x is None or 0 < x < math.inf for x in best) and min(best[:2]) >= 1
  except (OverflowError, ZeroDivisionError):  # of Python's numbers
    good = False
  if not good:
    raise InputError(
      f"this law says nothing of --flops={flops:g}: its numbers overflow, or are below "
      "one parameter or token"
    )
  penalty = None if n is None else float(best[2] - lowest)
  size, data, loss = (
    _interval(x, None if spread is None else spread[i], level)
    for i, x in enumerate(best)
  )
  ratios = None if spread is None else spread[1] / spread[0]
  ratio = _interval(best[1] / best[0], ratios, level)
  shape = None
  if hasattr(law, "shape") and n is None:
    found = law.shape(flops)
    shape = int(found.width), int(found.depth)
  notes = _notes(fitted, flops, float(best[0]), float(best[1]), shape)
  return Plan(flops, size, data, ratio, loss, penalty, shape, hours, notes)


def _check_size(law, n: float, flops: float):
  if not 1 <= n <= flops / FLOPS:
    raise InputError(
      f"--n={n:g} is not from 1 to {flops / FLOPS:.3g} parameters, which the budget "
      "trains on one token"
    )
  if not isinstance(law, Parametric | WithoutEmbedding):
    raise InputError(
      "--n: this law gives no loss for a size of your choice; use --law=epoch"
    )


def _interval(value, samples, level: float) -> Value:
  if value is None:
    return Value(None)
  if samples is None or np.ndim(samples) == 0:
    return Value(float(value))
  tail = (1 - level) / 2
  low, high = np.quantile(samples, [tail, 1 - tail])
  if not (math.isfinite(low) and math.isfinite(high)):
    return Value(float(value))
  return Value(float(value), float(low), float(high))


def _notes(fitted: Fitted, flops: float, n: float, d: float, shape) -> tuple[str, ...]:
  notes, sizes = [], {"n": n, "d": d, "c": flops}
  words = {"n": "parameters", "d": "tokens", "c": "FLOPs"}
  for key, (low, high) in fitted.span.items():
    x, what = sizes[key], words[key]
    if x > 1.05 * high:
      notes.append(
        f"{what}: {x:.3g} is {x / high:.3g} times the most in the fitted data "
        f"({high:.3g}), so this extrapolates."
      )
    elif x < low / 1.05:
      notes.append(
        f"{what}: {x:.3g} is below the least in the fitted data ({low:.3g}), so this "
        "extrapolates."
      )
  if fitted.counts != "all":
    notes.append("N and FLOPs are counted without embeddings.")
  if shape and shape[0] / shape[1] < 4:
    notes.append("The best shape is very deep; such models train slowly on devices.")
  return tuple(notes)


def table(plans: list[Plan], card: str, count: int = 1) -> str:
  """Plans as a table, one row each, for people.

  Args:
    plans: of one law.
    card: that the hours are of.
    count: devices; adds a column of days if there are several.
  """
  head = ["FLOPs", "N", "D", "tokens per parameter", "loss", f"{card} hours"]
  shaped, given = any(p.shape for p in plans), any(p.penalty is not None for p in plans)
  head += ["width x depth"] * shaped + ["above the best"] * given
  head += [f"days on {count}"] * (count > 1)
  rows = [head]
  for p in plans:
    row = [f"{p.flops:.3g}", _shown(p.n, plotting.short), _shown(p.d, plotting.short)]
    row += [_shown(p.ratio, lambda x: f"{x:.3g}"), _shown(p.loss, lambda x: f"{x:.3f}")]
    row.append(_hours(p.device_hours))
    if shaped:
      row.append("{} x {}".format(*p.shape) if p.shape else "")
    if given:
      row.append("" if p.penalty is None else f"{p.penalty:+.3f}")
    if count > 1:
      row.append(_hours(p.device_hours / count / 24))
    rows.append(row)
  widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
  lines = ["  ".join(x.rjust(w) for x, w in zip(row, widths, strict=True))
           for row in rows]  # fmt: skip
  return "\n".join(lines)


def _hours(x: float) -> str:
  return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


def _shown(value: Value, write) -> str:
  if value.value is None:
    return "-"
  if value.low is None or value.high is None:
    return write(value.value)
  return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"
