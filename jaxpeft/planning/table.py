"""Several plans of memory side by side: configs, targets, a table, a plot."""

from jaxpeft.planning import memory, targets


def of(configs: dict, names: list[str], tell=lambda text: None) -> dict:
  """{name: `memory.Plan`} of every config on every target.

  Every further target has as many rows for each of its devices as the first has (weak
  scaling).

  Args:
    configs: {name: of a run}.
    names: of targets, see `targets`.
    tell: called with a line before each.
  """
  first = len(targets.devices(names[0]))
  plans = {}
  for name, config in configs.items():
    for target in names:
      scaled = config.copy_and_resolve_references()
      rows = config.train.batch_size * len(targets.devices(target))
      scaled.train.batch_size = max(rows // first, config.train.accumulate)
      key = name if len(names) == 1 else target if len(configs) == 1 else None
      key = key or f"{name} {target}"
      tell(f"compiling {key}")
      plans[key] = memory.plan(scaled, target)
  return plans


def table(plans: dict) -> str:
  """A line for each; MB are of one device, FLOPs relative to the first."""
  width = max(map(len, plans)) + 2
  head = ("devices", "weights+state", "temporaries", "total", "collectives", "FLOPs")
  lines = [f"{'MB':<{width}}" + "".join(f"{name:>14}" for name in head)]
  first = next(iter(plans.values())).flops
  for name, plan in plans.items():
    sizes = (
      sum(plan.parts().values()) - plan.temporaries,
      plan.temporaries,
      plan.total,
      sum(x.bytes for x in plan.collectives),
    )
    lines.append(
      f"{name:<{width}}{plan.devices:>14}"
      + "".join(f"{size / 1e6:>14,.0f}" for size in sizes)
      + (f"{plan.flops / first:>14.3f}" if first and plan.flops else f"{'-':>14}")
    )
  return "\n".join(lines)


def plot(plans: dict, path: str):
  """A bar for each, of its parts; what tracing found of the temporaries is apart."""
  from matplotlib import figure

  bars = {name: _parts(plan) for name, plan in plans.items()}
  fig = figure.Figure(figsize=(8, 1.6 + 0.4 * len(bars)), layout="constrained")
  axes = fig.subplots()
  left = [0.0] * len(bars)
  for i, part in enumerate(next(iter(bars.values()))):
    sizes = [bar[part] / 1e9 for bar in bars.values()]
    axes.barh(list(bars), sizes, left=left, label=part, color=f"C{i}")
    left = [a + b for a, b in zip(left, sizes, strict=True)]
  for i, total in enumerate(left):
    axes.text(total, i, f" {total:.3g}", va="center", fontsize=8)
  axes.invert_yaxis()
  axes.margins(x=0.12)
  axes.set_xlabel("GB on one device, compiled")
  axes.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
  fig.savefig(path, dpi=130)


def _parts(plan) -> dict[str, int]:
  """Parts that add up: the compiler may hold less at a time than was traced."""
  parts = plan.parts()
  rest = parts.pop("temporaries")
  for name in ("gradients", "activations", "logits"):
    parts[name] = min(plan.traced.get(name, 0), rest)
    rest -= parts[name]
  return parts | dict(rest=rest)
