"""Searches for the largest batch, or the longest rows, that fit in a given memory.

Each trial compiles the real training step (`memory.plan`), which takes from seconds to
a minute.
"""

import re
from collections.abc import Callable

from jaxpeft import options
from jaxpeft.console import human
from jaxpeft.errors import InputError
from jaxpeft.parallel import sharding
from jaxpeft.planning import memory, targets

OVER = ("tokens", "rows")
_UNITS = dict(kB=1e3, MB=1e6, GB=1e9, KiB=2**10, MiB=2**20, GiB=2**30)
_FINEST = 16  # the answer is exact to 1/16 of itself
_TOKENS = 64  # row lengths are multiples of this


def parse_bytes(text: str) -> int:
  """Number of bytes: "24GB" -> 24,000,000,000; also kB, MB, KiB, MiB, GiB.

  Raises:
    InputError: the text is not a number and one of these units.
  """
  found = re.fullmatch(r"([\d.]+) ?(\w+)", text.strip())
  try:
    number, unit = found.groups() if found else ("", "")
    return int(float(number) * _UNITS[unit])
  except (KeyError, ValueError) as e:
    raise InputError(
      f"--fit={text} is not an amount of memory such as 24GB or 24GiB; the units are "
      f"{', '.join(_UNITS)}"
    ) from e


def largest(
  config, target: str, budget: int, over: str = "tokens", tell: Callable = print
):
  """(the largest size that fits, its `Plan`); the size is exact to 1/16.

  Args:
    config: config of a run; the search starts at its size.
    target: name of the devices to compile for, see `targets`.
    budget: bytes available on each device. The driver's context is not in a plan, so
      leave room for it.
    over: the size to vary: "tokens" (data.max_tokens), or "rows" (train.batch_size, the
      rows of all microbatches together).
    tell: called with a line of text after each trial.
  Raises:
    InputError: not even the smallest size fits, or `memory.plan` rejects the config.
  """
  options.check(config)
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
      f"the budget of {human(budget)}B, and it is the smallest possible value; try "
      "model.remat=segments, model.quantize=nf4 or a smaller tokens.fraction"
    )
  return low * unit, plans[low]


def _row_unit(config, target: str) -> int:
  """The smallest batch that divides into microbatches and over the devices."""
  devices = targets.devices(target)
  sizes = {name: config.mesh[name] for name in ("data", "fsdp", "tensor")}
  sizes = sharding.fill(sizes, len(devices))
  return config.train.accumulate * sizes["data"] * sizes["fsdp"]
