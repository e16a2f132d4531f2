"""Optimizers by name, with schedule and clipping, for the trainable partition."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxpeft.errors import InputError, unknown
from jaxpeft.training import scaled_gd as precondition_


def schedule(lr: float, kind: str, warmup: float, final_lr: float, steps: int):
  """Learning rate by step: linear warm-up from 0, then the named decay.

  Args:
    lr: the peak.
    kind: "cosine", "linear" or "constant".
    warmup: share of the steps.
    final_lr: share of the peak that is left at the last step.
    steps: in all.
  """
  if not 0 <= warmup < 1:
    raise InputError(f"optim.warmup {warmup} is a share of all steps, in [0, 1)")
  rising = round(warmup * steps)
  rest = max(1, steps - rising)
  decays = {
    "cosine": lambda: optax.cosine_decay_schedule(lr, rest, final_lr),
    "linear": lambda: optax.linear_schedule(lr, final_lr * lr, rest),
    "constant": lambda: optax.constant_schedule(lr),
  }
  if kind not in decays:
    raise unknown("optim.schedule", kind, decays)
  if not rising:
    return decays[kind]()
  # The first step already moves: a warm-up from 0 would waste it.
  first = (
    optax.linear_schedule(lr / rising, lr, rising - 1)
    if rising > 1
    else (optax.constant_schedule(lr))
  )
  return optax.join_schedules([first, decays[kind]()], [rising])


def make(
  steps: int,
  *,
  name,
  lr,
  schedule: str,
  warmup,
  final_lr,
  clip_norm,
  weight_decay,
  options,
  groups=(),
  precondition: str = "",
):
  """(gradient transformation, learning-rate schedule) of `config.optim`.

  Args:
    groups: {group: {match: regex of whole paths of trained leaves, times: factor}};
      LoRA+ [Hayou et al. 2024, arXiv:2402.12354] is times=16 for ".*/theta/b".
    precondition: "" or "scaled_gd", what is done to gradients before clipping.

  Raises:
    InputError: an optimizer that Optax does not have, or an option that it does not; a
      number that would train nothing, or uphill.
  """
  _check(lr=lr, final_lr=final_lr, clip_norm=clip_norm, weight_decay=weight_decay)
  factory = _factories().get(name)
  if factory is None:
    raise unknown("optimizer in optim.name", name, _factories())
  options = dict(options)
  known = inspect.signature(factory).parameters
  if weight_decay:
    options["weight_decay"] = weight_decay
  elif "weight_decay" in known:
    options.setdefault("weight_decay", 0.0)
  for option in options:
    if option not in known:
      raise unknown(f"option of {name} in optim.options", option, known)
  rate = _schedule(lr, schedule, warmup, final_lr, steps)
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  try:
    tx = factory(rate, **options)
    trial = {"w": jnp.ones((2, 2))}
    jax.eval_shape(lambda t: tx.update(t, tx.init(t), t), trial)
  except Exception as e:  # whatever it raises, it cannot be used for these steps
    reason = str(e).strip().split("\n")[0]
    raise InputError(f"optimizer {name} with {options} does not fit: {reason}") from e
  if groups:
    tx = _by_group(lambda times: factory(lambda i: times * rate(i), **options), groups)
  if precondition not in _PRECONDITION:
    raise unknown("optim.precondition", precondition, _PRECONDITION)
  return optax.chain(*_PRECONDITION[precondition](), *clip, tx), rate


def _check(lr, **others):
  """Refuses a rate that is not above 0, and others below it; NaN is neither."""
  if not 0 < lr < math.inf:
    raise InputError(f"optim.lr {lr} is not above 0 and finite")
  for name, value in others.items():
    # Clipping to a norm below 0 would turn the gradient around.
    if not 0 <= value < math.inf:
      raise InputError(f"optim.{name} {value} is not at least 0 and finite")


def _by_group(make_one, groups):
  """An optimizer for each group of leaves, with its own learning rate."""
  rules, times = {}, {"": 1.0}
  for group, fields in groups.items():
    if set(fields) != {"match", "times"}:
      raise InputError(f"optim.groups.{group} needs `match` (a regex) and `times`")
    try:
      rules[group] = re.compile(fields["match"])
    except re.error as e:
      raise InputError(f"optim.groups.{group}.match is no regex: {e}") from e
    times[group] = fields["times"]
    if not isinstance(times[group], int | float) or not times[group] > 0:
      raise InputError(f"optim.groups.{group}.times {times[group]!r} is not above 0")

  def labels(trainable):
    used = set()

    def label(path, _):
      path = jax.tree_util.keystr(path, simple=True, separator="/")
      found = [group for group, regex in rules.items() if regex.fullmatch(path)]
      if len(found) > 1:
        raise InputError(f"optim.groups {found} all match {path}; make them disjoint")
      used.update(found)
      return found[0] if found else ""

    tree = jax.tree_util.tree_map_with_path(label, trainable)
    unused = sorted(rules.keys() - used)
    if unused:
      raise InputError(
        f"optim.groups.{unused[0]}.match matches nothing that is trained"
      )
    return tree

  return optax.partition({g: make_one(t) for g, t in times.items()}, labels)


_PRECONDITION = {"": list, "scaled_gd": lambda: [precondition_.scaled_gd()]}
_schedule = schedule  # `make` has an argument of that name, as the config has


def _factories() -> dict:
  found = {}
  for module in (optax.contrib, optax):
    for name, f in vars(module).items():
      if inspect.isfunction(f) and not name.startswith("_"):
        first = next(iter(inspect.signature(f).parameters), "")
        # Schedule-free ones are evaluated at another point than they train.
        odd = name.startswith(("scale_by", "schedule_free"))
        if first == "learning_rate" and not odd:
          found[name] = f
  return found
