"""Memory plans of several configs or targets, as a table and as a plot."""

from jaxpeft import options, plotting
from jaxpeft.planning import memory, targets

# Parts of a bar, from left to right: name, color, and hatching for a grey printer.
_LOOKS = {
  "base": ("frozen weights", plotting.BLUE, ""),
  "quantized": ("weights in 4 bits", plotting.BLUE, "////"),
  "trainable": ("trained", plotting.ORANGE, ""),
  "optimizer": ("optimizer", plotting.YELLOW, "...."),
  "gradients": ("gradients", plotting.PINK, "xxxx"),
  "activations": ("activations", plotting.SKY, ""),
  "logits": ("logits", plotting.GREEN, "\\\\\\\\"),
  "batch": ("batch", plotting.BLACK, ""),
  "rest": ("rest", "0.8", ""),
}


def plans(configs: dict, names: list[str], report=lambda text: None) -> dict:
  """{name: `memory.Plan`} of every config on every target.

  The batch size is scaled so that every target has as many rows per device as the first
  one (weak scaling).

  Args:
    configs: {name: config of a run}.
    names: names of targets, see `targets`.
    report: called with a line of text before each compilation.
  """
  for config in configs.values():  # before rows are scaled
    options.check(config)
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
  """Draws one stacked bar per plan; sizes from tracing split the temporaries.

  Parts have the order of the bars in the legend, which leaves out those that no bar
  shows.
  """
  bars = {name: _parts(plan) for name, plan in plans.items()}
  largest = max(sum(bar.values()) for bar in bars.values()) or 1
  unit, letters = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
  with plotting.picture(path, 8, 1.4 + 0.36 * len(bars)) as fig:
    axes = fig.subplots()
    left = [0.0] * len(bars)
    for part, (label, color, hatch) in _LOOKS.items():
      sizes = [bar[part] / unit for bar in bars.values()]
      if max(sizes) * unit < 0.004 * largest:  # too thin to be seen
        left = [a + b for a, b in zip(left, sizes, strict=True)]
        continue
      axes.barh(
        range(len(bars)), sizes, 0.7, left, label=label, color=color, hatch=hatch,
        edgecolor="white", linewidth=0.6,
      )  # fmt: skip
      left = [a + b for a, b in zip(left, sizes, strict=True)]
    for i, total in enumerate(left):
      axes.text(total, i, f"  {total:.3g}", va="center", fontsize=8)
    axes.set(
      yticks=range(len(bars)), yticklabels=list(bars), ylim=(len(bars) - 0.4, -0.6),
      xlim=(0, 1.1 * largest / unit), xlabel=f"{letters} on one device, compiled",
    )  # fmt: skip
    plotting.linear_scale(axes.xaxis)
    axes.grid(False, axis="y")
    title = "Memory of one training step"
    plotting.header(fig, title, *axes.get_legend_handles_labels(), ncols=5)


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
