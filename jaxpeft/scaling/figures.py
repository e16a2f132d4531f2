"""Pictures of fits that look like those of the papers.

Approach 1: training curves, the hull or envelope, and the best N against FLOPs.
Approach 2: the parabolas of the budgets, and the line through their minima.
Approach 3: contours of the loss in the plane of FLOPs and N, and the residuals.
"""

import numpy as np

from jaxpeft import plotting
from jaxpeft.scaling import isoflop, parametric
from jaxpeft.scaling.frontier import Frontier
from jaxpeft.scaling.results import Result


def draw(result: Result, points, path):
  """Writes the picture of a result as PNG."""
  with plotting.picture(path, 9.5, 4.6) as fig:
    left, right = fig.subplots(1, 2)
    if result.approach == 1:
      _hull(left, points, result.source)
      _line(right, points, result.source)
    elif result.approach == 2:
      _parabolas(left, result.source)
      _line(right, points, result.source.frontier)
    else:
      if result.source.terms == parametric.PARAMETERS:
        _contours(left, points, result)
      else:
        _predicted(left, points, result.source)
      _residuals(right, points, result.source)
    handles, labels = left.get_legend_handles_labels()
    plotting.header(fig, result.title, handles, labels)


def log_limits(values) -> tuple[float, float]:
  """Limits of a logarithmic axis around positive values."""
  low, high = float(np.min(values)), float(np.max(values))
  room = max(1.1, (high / low) ** 0.05)
  return low / room, high * room


def _axes(ax, x, y, x_name: str, y_name: str):
  write = _power if x_name == "FLOPs" else plotting.short
  plotting.log_scale(ax.xaxis, write, *log_limits(x))
  plotting.log_scale(ax.yaxis, plotting.short, *log_limits(y))
  ax.set(xlabel=x_name, ylabel=y_name)


def _power(x: float) -> str:
  return f"{x:.0e}".replace("e+", "e")


def _hull(ax, points, front: Frontier):
  if points.curves():
    for name in np.unique(points.run):
      one = points.take(points.run == name)
      order = np.argsort(one.c)
      ax.plot(one.c[order], one.loss[order], color=plotting.GREY, lw=0.6)
  else:
    ax.plot(points.c, points.loss, ".", color=plotting.GREY, ms=4, label="points")
  few = len(front.c) < 200
  ax.plot(
    front.c, front.loss, "x--" if few else "-", color=plotting.BLACK,
    label="hull" if few else "envelope",
  )  # fmt: skip
  _axes(ax, points.c, points.loss, "FLOPs", "loss in nats")


def _line(ax, points, front: Frontier):
  ax.plot(points.c, points.n, ".", color=plotting.GREY, ms=3)
  ax.plot(front.c, front.n, "x" if len(front.c) < 200 else ".", color=plotting.BLACK)
  c = np.geomspace(points.c.min(), points.c.max(), 50)
  ax.plot(c, front.n_line.at(c), color=plotting.BLUE)
  middle = np.exp(np.log(front.c).mean()), np.exp(np.log(front.n).mean())
  for slope, dash, name in ((0.73, "--", "Kaplan .73"), (0.5, ":", "Chinchilla .50")):
    ax.plot(c, middle[1] * (c / middle[0]) ** slope, dash, color=plotting.ORANGE, lw=1)
    end = (c[-1], middle[1] * (c[-1] / middle[0]) ** slope)
    ax.annotate(name, end, ha="right", va="bottom", fontsize=7, color=plotting.ORANGE)
  _axes(ax, points.c, points.n, "FLOPs", "best parameters")
  ax.set_title(f"N = C^{front.a:.3f}", fontsize=9)


def _parabolas(ax, of: isoflop.IsoFlop):
  from matplotlib import colormaps

  shades = colormaps["viridis"](np.linspace(0, 0.9, len(of.parabolas)))
  for p, color in zip(of.parabolas, shades, strict=True):
    ax.plot(p.n, p.loss, ".", color=color, ms=4)
    if p.curve is not None:
      at = np.geomspace(p.n[p.used].min(), p.n[p.used].max(), 50)
      ax.plot(at, np.exp(np.polyval(p.curve, np.log(at) - p.middle)), color=color)
    if p.best:
      ax.plot(p.best[0], p.best[2], "*", color=color, ms=9, mec="white", mew=0.5)
    ax.annotate(
      _power(p.budget), (p.n[-1], p.loss[-1]), fontsize=6, color=color, va="center"
    )
  n = np.concatenate([p.n for p in of.parabolas])
  loss = np.concatenate([p.loss for p in of.parabolas])
  _axes(ax, n, loss, "parameters", "loss in nats")


def _contours(ax, points, result: Result):
  law = result.source.law
  c = np.geomspace(points.c.min(), 10 * points.c.max(), 80)
  n = np.geomspace(points.n.min(), points.n.max() * 3, 80)
  loss = law.loss(n[:, None], c / (6 * n[:, None]))
  levels = np.geomspace(law.frontier(c[-1]) * 1.01, points.loss.max(), 14)
  drawn = ax.contour(c, n, loss, levels=levels, cmap="viridis", linewidths=0.9)
  ax.clabel(drawn, fontsize=6, fmt=lambda x: f"{x:.2f}")
  ax.scatter(points.c, points.n, c=points.loss, cmap="viridis", s=8)
  ax.plot(c, law.optimum(c)[0], "--", color=plotting.BLUE, label="best N")
  _axes(ax, c, n, "FLOPs", "parameters")


def _predicted(ax, points, fit):
  loss = np.exp(np.log(points.loss) + fit.residuals())
  ax.plot(points.loss, loss, ".", color=plotting.BLUE, ms=4)
  ends = log_limits(points.loss)
  ax.plot(ends, ends, "--", color=plotting.GREY)
  _axes(ax, points.loss, points.loss, "measured loss", "predicted loss")


def _residuals(ax, points, fit):
  shown = 100 * fit.residuals()
  drawn = ax.scatter(points.n, shown, c=np.log10(points.d), cmap="viridis", s=10)
  ax.figure.colorbar(drawn, ax=ax, label="log10 of tokens", pad=0.01)
  ax.axhline(0, color=plotting.BLACK, lw=0.8)
  for edge in (-100 * fit.delta, 100 * fit.delta):
    ax.axhline(edge, color=plotting.ORANGE, lw=0.8, ls="--")
  plotting.log_scale(ax.xaxis, plotting.short, *log_limits(points.n))
  ax.set(xlabel="parameters", ylabel="predicted / measured loss - 1, %")
  ax.set_title("residuals; dashed: delta", fontsize=9)
