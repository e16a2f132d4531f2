"""loss.png: what a run's losses did, and what its accuracy became."""

import pathlib

import numpy as np

from jaxpeft import plotting

_SMOOTHED_FROM = 60  # points; fewer are drawn as they are
_MEANS = 40  # of that many parts of the run


def loss(path: pathlib.Path, lines: list[dict], title: str, final: dict | None = None):
  """Draws the losses of a run over its steps, and its accuracy if there is one.

  The picture has the training loss, smoothed if it is long; the held-out loss, with a
  level line at its value before training; and a ring at the step that was kept.
  Values that are not finite are marked at the lower edge.

  Args:
    path: the PNG file.
    lines: lines of metrics.jsonl, in any order; `loss` and `eval_loss` are drawn.
    title: what the run is, in one line.
    final: the run's result, with `adapter_step`, `base_accuracy`, `accuracy` and
      `accuracy_ci95`, as far as there is one; otherwise the last line that is final.
  """
  final = final or next((x for x in reversed(lines) if x.get("final")), {})
  train, held = _points(lines, "loss"), _points(lines, "eval_loss")
  accuracy = _is_number(final.get("accuracy"))
  with plotting.picture(path, 7.6 if accuracy else 6.6, 4.2) as fig:
    if accuracy:
      axes, side = fig.subplots(1, 2, width_ratios=[4.5, 1])
      _accuracy(side, final)
    else:
      axes = fig.subplots()
    _scales(axes, train, held)
    _train(axes, *train)
    _held_out(axes, *held, final.get("adapter_step"))
    _not_finite(axes, np.concatenate([s[~np.isfinite(y)] for s, y in (train, held)]))
    axes.set(xlabel="step", ylabel="loss [nats per supervised token]")
    handles, labels = axes.get_legend_handles_labels()
    ncols = len(labels) if len(labels) <= 4 else 3
    plotting.header(fig, title, handles, labels, ncols, 88 if accuracy else 76)
    if not any(np.isfinite(y).any() for _, y in (train, held)):
      axes.text(0.5, 0.5, "no loss to draw", ha="center", transform=axes.transAxes)


def _points(lines, name) -> tuple[np.ndarray, np.ndarray]:
  """(steps, values) of the lines that have a number under `name`, by step."""
  found = [
    (line["step"], line[name])
    for line in lines
    if _is_number(line.get(name)) and not line.get("final")
  ]
  found.sort(key=lambda point: point[0])
  steps, values = np.array(found, float).reshape(-1, 2).T
  return steps, values


def _is_number(x) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool)


def _scales(axes, *series):
  """The scales of both axes: a logarithm for losses that differ by much."""
  steps = np.concatenate([s for s, _ in series])
  axes.set_xlim(*_wider(min([0, *steps]), max([1, *steps]), 0.02))
  plotting.linear_scale(axes.xaxis, whole=True)
  values = np.concatenate([y[np.isfinite(y)] for _, y in series])
  low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
  if low > 0:  # a spike may leave the picture, or nothing else could be read
    middle = np.median(values)
    low, high = max(low, 1e-6 * middle), min(high, 1e3 * middle)
  if low > 0 and high / low > 8:
    low, high = np.exp(_wider(np.log(low), np.log(high), 0.06))
    plotting.log_scale(axes.yaxis, low=low, high=high)
  else:
    low = 0.0 if 0 < low < 0.4 * high else low  # nearly at zero: show the zero
    axes.set_ylim(*_wider(low, high or 1.0, 0.06))
    plotting.linear_scale(axes.yaxis)


def _wider(low: float, high: float, share: float) -> tuple[float, float]:
  room = share * (high - low) or 0.1 * abs(high) or 1.0
  return low - room, high + room


def _train(axes, steps, values):
  ok = np.isfinite(values)
  steps, values = steps[ok], values[ok]
  if not len(steps):
    return
  if len(steps) < _SMOOTHED_FROM:
    mark = "." if len(steps) < 25 else ""
    axes.plot(steps, values, mark + "-", color=plotting.BLUE, label="training batch")
    return
  axes.plot(
    steps, values, color=plotting.SKY, lw=0.6, alpha=0.6, label="training batch"
  )
  size = max(5, len(steps) // _MEANS)
  at, means = smooth(values, size)
  span = size * round(float(np.median(np.diff(steps))))
  axes.plot(
    steps[at], means, color=plotting.BLUE, lw=1.8,
    label=f"its mean over {plotting.number(span)} steps",
  )  # fmt: skip


def smooth(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Centered means over `size` values, at up to 400 of them: (indices, means).

  Each mean is as wide to its left as to its right, and narrower near the ends, so that
  a loss that falls at the start of a run is not drawn too low there.
  """
  at = np.unique(np.linspace(0, len(values) - 1, 400).round().astype(int))
  half = np.minimum(size // 2, np.minimum(at, len(values) - 1 - at))
  means = [values[i - h : i + h + 1].mean() for i, h in zip(at, half, strict=True)]
  return at, np.array(means)


def _held_out(axes, steps, values, kept: int | None):
  ok = np.isfinite(values)
  steps, values = steps[ok], values[ok]
  if not len(steps):
    return
  axes.plot(
    steps, values, "s-", color=plotting.ORANGE, lw=1.4, zorder=4, label="held out",
    markersize=4.5 if len(steps) <= 40 else 0,
  )  # fmt: skip
  if steps[0] == 0:
    axes.axhline(
      values[0], color=plotting.BLACK, ls=(0, (5, 3)), lw=1,
      label=f"before training: {values[0]:.3g}",
    )  # fmt: skip
  for step, value in zip(steps, values, strict=True):
    if step == kept and step > 0:
      axes.plot(
        step, value, "o", markersize=11, color=plotting.BLACK, fillstyle="none",
        markeredgewidth=1.4, zorder=5, clip_on=False, ls="",
        label=f"kept: step {plotting.number(step)}, {value:.3g}",
      )  # fmt: skip
      return


def _not_finite(axes, steps):
  if not len(steps):
    return
  axes.plot(
    steps, np.zeros(len(steps)), "x", color=plotting.BLACK, markersize=6, ls="",
    transform=axes.get_xaxis_transform(), clip_on=False, zorder=6,
    label=f"not finite ({len(steps):,})",
  )  # fmt: skip


def _accuracy(axes, final):
  """A point for the base and one for the adapted model, with 95 % intervals."""
  from matplotlib import ticker

  shown = (
    ("base", "base_accuracy", "base_accuracy_ci95", plotting.GREY, "D"),
    ("adapted", "accuracy", "accuracy_ci95", plotting.BLUE, "o"),
  )
  for x, (_, name, interval, color, mark) in enumerate(shown):
    value = final.get(name)
    if not _is_number(value):
      continue
    low, high = final.get(interval) or (value, value)
    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(
      x, value, error, fmt=mark, color=color, markersize=5, capsize=3, clip_on=False
    )
    below = value > 0.8
    axes.annotate(
      f"{value:.1%}", (x, min(low, value) if below else max(high, value)),
      (0, -4 if below else 4), textcoords="offset points", fontsize=8,
      ha="center", va="top" if below else "bottom",
    )  # fmt: skip
  axes.set(xlim=(-0.6, 1.6), ylim=(0, 1), title="accuracy")
  axes.title.set(fontsize=9)
  axes.set_xticks([0, 1], ["base", "adapted"])
  axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  axes.grid(False, axis="x")
  axes.set_xlabel(f"{final['problems']:,} problems" if "problems" in final else "")
