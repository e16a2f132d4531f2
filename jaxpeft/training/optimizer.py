"""Optax optimizers by name, with schedule, clipping and per-group learning rates."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxpeft.errors import InputError, unknown
from jaxpeft.training import scaled_gd as precondition_
from jaxpeft.tree import path_name


def schedule(lr: float, kind: str, warmup: float, final_lr: float, steps: int):
  """Optax schedule: linear warm-up to the peak, then the named decay.

  Args:
    lr: the peak learning rate.
    kind: "cosine", "linear" or "constant".
    warmup: share of the steps that warm up, in [0, 1).
    final_lr: learning rate at the end of the decay, as a share of the peak.
    steps: total number of steps.
  Raises:
    InputError: an unknown kind, or a warm-up outside [0, 1).
  """
  if not 0 <= warmup < 1:
    raise InputError(f"optim.warmup {warmup} is not a share of the steps in [0, 1)")
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
  # Warm-up starts at lr / rising; a learning rate of 0 would waste the first step.
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
    steps: total number of steps.
    name: an optimizer of `optax` or `optax.contrib`, e.g. "adamw".
    lr, schedule, warmup, final_lr: as in `schedule`.
    clip_norm: largest global norm of the gradients; 0 disables clipping.
    weight_decay: passed to the optimizer.
    options: other keyword arguments of the optimizer.
    groups: {group: {match: regex, times: factor}}. The regex is matched against the
      whole path of each trained leaf; the factor multiplies its learning rate. For
      example, LoRA+ [Hayou et al. 2024, arXiv:2402.12354] is times=16 for
      ".*/theta/b".
    precondition: what transforms gradients before clipping: "" (nothing) or
      "scaled_gd".
  Raises:
    InputError: an optimizer or an option that Optax does not have, or a number out of
      range.
  """
  _check(lr=lr, final_lr=final_lr, clip_norm=clip_norm, weight_decay=weight_decay)
  factory = factories().get(name)
  if factory is None:
    raise unknown("optimizer in optim.name", name, factories())
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
  except Exception as e:  # whatever it raises, this optimizer cannot be used
    reason = str(e).strip().split("\n")[0]
    raise InputError(
      f"optim.name={name} with optim.options={options} cannot be used: {reason}"
    ) from e
  if groups:
    tx = _by_group(lambda times: factory(lambda i: times * rate(i), **options), groups)
  if precondition not in _PRECONDITION:
    raise unknown("optim.precondition", precondition, _PRECONDITION)
  return optax.chain(*_PRECONDITION[precondition](), *clip, tx), rate


def _check(lr, **others):
  """Rejects lr unless above 0, and the others unless at least 0; rejects NaN, too."""
  if not 0 < lr < math.inf:
    raise InputError(f"optim.lr {lr} is not a finite number above 0")
  for name, value in others.items():
    # Clipping to a negative norm would reverse the gradient.
    if not 0 <= value < math.inf:
      raise InputError(f"optim.{name} {value} is not a finite number, 0 or above")


def _by_group(make_one, groups):
  """One transformation, in which each group of leaves has its own learning rate."""
  rules, times = {}, {"": 1.0}
  for group, fields in groups.items():
    if not hasattr(fields, "keys") or set(fields) != {"match", "times"}:
      raise InputError(f"optim.groups.{group} needs `match` (a regex) and `times`")
    try:
      rules[group] = re.compile(fields["match"])
    except (re.error, TypeError, RecursionError, OverflowError) as e:
      raise InputError(f"optim.groups.{group}.match is no regex: {e}") from e
    times[group] = fields["times"]
    if not isinstance(times[group], int | float) or not 0 < times[group] < math.inf:
      raise InputError(
        f"optim.groups.{group}.times {times[group]!r} is not above 0 and finite"
      )

  def labels(trainable):
    used = set()

    def label(path, _):
      path = path_name(path)
      found = [group for group, regex in rules.items() if regex.fullmatch(path)]
      if len(found) > 1:
        raise InputError(f"optim.groups {found} all match {path}; make them disjoint")
      used.update(found)
      return found[0] if found else ""

    tree = jax.tree_util.tree_map_with_path(label, trainable)
    unused = sorted(rules.keys() - used)
    if unused:
      raise InputError(
        f"optim.groups.{unused[0]}.match matches nothing that is trained; it must "
        "match the whole path of a trained leaf, e.g. layers_0/attn/q/theta/b"
      )
    return tree

  return optax.partition({g: make_one(t) for g, t in times.items()}, labels)


_PRECONDITION = {"": list, "scaled_gd": lambda: [precondition_.scaled_gd()]}
_schedule = schedule  # `make` has an argument `schedule`, like the config key


def factories() -> dict:
  """{name: function} of the optimizers of Optax that take a learning rate."""
  found = {}
  for module in (optax.contrib, optax):
    for name, f in vars(module).items():
      if inspect.isfunction(f) and not name.startswith("_"):
        first = next(iter(inspect.signature(f).parameters), "")
        # Schedule-free ones must be evaluated at other parameters than they train.
        odd = name.startswith(("scale_by", "schedule_free"))
        if first == "learning_rate" and not odd:
          found[name] = f
  return found
