"""Memory plans of several configs or targets, as a table and as a plot."""

from jaxpeft.planning import memory, targets


def plans(configs: dict, names: list[str], report=lambda text: None) -> dict:
  """{name: `memory.Plan`} of every config on every target.

  The batch size is scaled so that every target has as many rows per device as the first
  one (weak scaling).

  Args:
    configs: {name: config of a run}.
    names: names of targets, see `targets`.
    report: called with a line of text before each compilation.
  """
  first = len(targets.devices(names[0]))
  found = {}
  for name, config in configs.items():
    for target in names:
      scaled = config.copy_and_resolve_references()
      rows = config.train.batch_size * len(targets.devices(target))
      scaled.train.batch_size = max(rows // first, config.train.accumulate)
      key = name if len(names) == 1 else target if len(configs) == 1 else None
      key = key or f"{name} {target}"
      report(f"compiling {key}")
      found[key] = memory.plan(scaled, target)
  return found


def table(plans: dict) -> str:
  """One line per plan: MB per device, and FLOPs relative to the first plan."""
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
  """Draws one stacked bar per plan; sizes from tracing split the temporaries."""
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
  """Parts of a plan that add up to its total.

  The traced sizes are cut off where they exceed the compiler's temporaries, since the
  compiler may hold less at once than was traced.
  """
  parts = plan.parts()
  rest = parts.pop("temporaries")
  for name in ("gradients", "activations", "logits"):
    parts[name] = min(plan.traced.get(name, 0), rest)
    rest -= parts[name]
  return parts | dict(rest=rest)
