"""What fits: the largest batch, or the longest rows, whose step needs a given memory.

Every trial compiles the real step (`memory.plan`), and so takes from seconds to a
minute.
"""

import re
from collections.abc import Callable

from jaxpeft.console import human
from jaxpeft.errors import InputError
from jaxpeft.parallel import sharding
from jaxpeft.planning import memory, targets

OVER = ("tokens", "rows")
_UNITS = dict(kB=1e3, MB=1e6, GB=1e9, KiB=2**10, MiB=2**20, GiB=2**30)
_FINEST = 16  # the answer is exact to a 16th of itself
_TOKENS = 64  # rows are lengthened by multiples of it


def parse_bytes(text: str) -> int:
  """ "24GB" -> 24,000,000,000; also kB, MB, KiB, MiB, GiB.

  Raises:
    InputError: it is no such thing.
  """
  found = re.fullmatch(r"([\d.]+) ?(\w+)", text.strip())
  try:
    return int(float(found[1]) * _UNITS[found[2]])
  except (KeyError, TypeError, ValueError) as e:
    raise InputError(
      f"--fit={text} is no amount of memory, as 24GB or 24GiB is ({', '.join(_UNITS)})"
    ) from e


def largest(
  config, target: str, budget: int, over: str = "tokens", tell: Callable = print
):
  """(the largest number that fits, its `Plan`), to a 16th.

  Args:
    config: of a run; the search starts at its own number.
    target: see `targets`.
    budget: bytes of one device; the driver's context is not in a plan.
    over: "tokens" (data.max_tokens), or "rows" (train.batch_size, which is those of
      all microbatches).
    tell: called with a line after every trial.
  Raises:
    InputError: not even the least fits; or as of `memory.plan`.
  """
  key = dict(tokens="data.max_tokens", rows="train.batch_size")[over]
  section, name = key.split(".")
  unit = _TOKENS if over == "tokens" else _row_unit(config, target)
  plans = {}

  def fits(n: int) -> bool:
    changed = config.copy_and_resolve_references()
    changed[section][name] = n * unit
    plans[n] = memory.plan(changed, target)
    verdict = "fits" if plans[n].total <= budget else "does not fit"
    tell(f"  {key}={n * unit}: {human(plans[n].total)}B, {verdict}")
    return plans[n].total <= budget

  low, high = 0, max(1, config[section][name] // unit)
  while fits(high):
    low, high = high, 2 * high
  while high - low > max(1, high // (2 * _FINEST)):
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  if not low:
    raise InputError(
      f"{key}={high * unit} needs {human(plans[high].total)}B on {target}, more than "
      f"the {human(budget)}B asked for, and it is the least there is; try "
      "model.remat=segments, model.quantize=nf4 or tokens.fraction"
    )
  return low * unit, plans[low]


def _row_unit(config, target: str) -> int:
  """The least batch that divides into microbatches and over devices."""
  devices = targets.devices(target)
  sizes = {name: config.mesh[name] for name in ("data", "fsdp", "tensor")}
  sizes = sharding.fill(sizes, len(devices))
  return config.train.accumulate * sizes["data"] * sizes["fsdp"]
