"""pareto.png: accuracy against trained parameters, and which methods nothing beats."""

import itertools
import pathlib

import numpy as np

from jaxpeft import plotting
from jaxpeft.sweeps import labels

_SIZES = [(7.0 + 1.0 * i, 4.6 + 0.9 * i) for i in range(8)]  # inches, until names fit


def front(rows: list[dict]) -> list[dict]:
  """The rows that no other row with as few parameters equals, from small to large."""
  ahead = []
  for row in sorted(rows, key=lambda row: (row["trained"], -row["accuracy"])):
    if not ahead or row["accuracy"] > ahead[-1]["accuracy"]:
      ahead.append(row)
  return ahead


def pareto(rows: list[dict], path: pathlib.Path):
  """Draws accuracy, with its interval, against the number of trained parameters.

  The picture grows until no name covers a point or another name.

  Args:
    rows: as in `compare`, with `name`, `trained`, `accuracy` and `interval`.
    path: the PNG file.
  """
  with plotting.picture(path, *_SIZES[0]) as fig:
    for size in _SIZES:
      fig.clear()
      fig.set_size_inches(size)
      fig.set_layout_engine("constrained")
      axes = fig.subplots()
      line = _points(fig, axes, rows)
      if _names(fig, axes, rows, line):
        return
    axes.set_title("no room for the names", fontsize=8)


def _points(fig, axes, rows) -> list[tuple[float, float]]:
  """Draws all but the names; returns the corners of the front's line."""
  best = front(rows)
  trained = [max(1, row["trained"]) for row in rows]
  low, high = min(trained) / 1.7, max(trained) * 1.7
  plotting.log_scale(axes.xaxis, plotting.short, low, high)
  least = min(min(row["interval"][0], row["accuracy"]) for row in rows)
  axes.set_ylim(0 if least < 0.4 else int(10 * least) / 10 - 0.02, 1.02)
  plotting.linear_scale(axes.yaxis, lambda y: f"{100 * y:.0f} %")
  corners = []
  for row, after in zip(best, [*best[1:], None], strict=True):
    until = after["trained"] if after else high
    corners += [(max(1, row["trained"]), row["accuracy"]), (until, row["accuracy"])]
  axes.plot(*zip(*corners, strict=True), color=plotting.SKY, lw=1.4, zorder=1)
  for shown, style, label in (
    (best, ("o", plotting.BLUE, plotting.BLUE), "nothing smaller is as accurate"),
    ([r for r in rows if r not in best], ("s", plotting.GREY, "white"), "other"),
  ):
    if not shown:
      continue
    mark, color, fill = style
    y = np.array([row["accuracy"] for row in shown])
    ends = np.array([row["interval"] for row in shown]).T
    axes.errorbar(
      [max(1, row["trained"]) for row in shown], y,
      np.maximum(0, [y - ends[0], ends[1] - y]), fmt=mark, color=color, lw=1.2,
      markersize=5.5, markerfacecolor=fill, zorder=3 + (shown is best), label=label,
    )  # fmt: skip
  axes.set(xlabel="trained parameters", ylabel="accuracy, 95 % interval")
  title = "Accuracy against trained parameters"
  plotting.header(fig, title, *axes.get_legend_handles_labels())
  return corners


def _names(fig, axes, rows, line) -> bool:
  """Writes the names, away from the points and the front's line, if there is room."""
  best = front(rows)
  texts = []
  for row in rows:
    weight = "bold" if row in best else "normal"
    text = axes.text(0, 0, row["name"], fontsize=8, weight=weight, transform=None)
    text.set(va="bottom", parse_math=False, zorder=5, in_layout=False)
    texts.append(text)
  fig.draw_without_rendering()  # computes the layout, which must then stay as it is
  fig.set_layout_engine("none")
  boxes = [text.get_window_extent() for text in texts]
  sizes = [(box.width + 4, box.height + 3) for box in boxes]
  data = [(max(1, row["trained"]), row["accuracy"]) for row in rows]
  at = axes.transData.transform(data)
  taken = []
  for row, (x, y) in zip(rows, at, strict=True):
    taken.append((x - 7, y - 7, x + 7, y + 7))
    ends = [(max(1, row["trained"]), share) for share in row["interval"]]
    (_, low), (_, high) = axes.transData.transform(ends)
    taken.append((x - 3, min(low, y), x + 3, max(high, y)))
  ends = axes.transData.transform(line)
  for one, two in itertools.pairwise(ends):
    taken.append((*np.minimum(one, two) - 2, *np.maximum(one, two) + 2))
  found = labels.place(at, sizes, taken, axes.bbox.extents)
  for text, label, point in zip(texts, found or [], at, strict=False):
    text.set_position((label.box[0] + 2, label.box[1] + 2))
    if label.line:
      ends = np.array([labels.end(label, point), point]).T
      axes.plot(*ends, color="0.6", lw=0.7, zorder=2, transform=None)
  for text in texts if found is None else []:
    text.set_visible(False)
  return found is not None
