"""Draws the best N and D of a law against the budget, as the papers' figures do."""

import numpy as np

from jaxpeft import plotting
from jaxpeft.scaling.laws import Fitted


def draw(fitted: Fitted, plans, path, name: str = "", level: float = 0.95):
  """Writes a picture: N and D with their bands, and the plans as points.

  Args:
    fitted: the law.
    plans: list of `plan.Plan`, which are marked.
    path: FILE.png.
    name: of the law, for the title.
    level: of the bands.
  """
  budgets = np.asarray([p.flops for p in plans])
  c = np.geomspace(budgets.min() / 30, budgets.max() * 30, 60)
  drawn, tail = fitted.draws(1_000), (1 - level) / 2
  with plotting.picture(path, 7.2, 3.4) as fig:
    axes = fig.subplots(1, 2)
    lines = fitted.law.optimum(c)
    bands = None if drawn is None else [drawn.optimum(x) for x in c]
    for i, (axis, what) in enumerate(zip(axes, ("N", "D"), strict=True)):
      low, high = lines[i].min() / 3, lines[i].max() * 3
      if bands is not None:
        ends = np.asarray([np.quantile(x[i], [tail, 1 - tail]) for x in bands])
        axis.fill_between(c, *ends.T, color=plotting.SKY, alpha=0.35, lw=0,
                          label=f"its {level:.0%} interval")  # fmt: skip
        low, high = min(low, ends.min()), max(high, ends.max())
      axis.plot(c, lines[i], color=plotting.BLUE, label="best for the budget")
      points = [(p.n, p.d)[i].value for p in plans]
      axis.plot(budgets, points, "o", color=plotting.ORANGE, label="planned")
      plotting.log_scale(axis.xaxis, lambda x: f"{x:.0e}".replace("e+", "e"),
                         c[0], c[-1])  # fmt: skip
      plotting.log_scale(axis.yaxis, plotting.short, low, high)
      axis.set_xlabel("training FLOPs")
      axis.set_ylabel({"N": "parameters", "D": "tokens"}[what])
    handles, labels = axes[0].get_legend_handles_labels()
    plotting.header(fig, f"law {name}: {fitted.source}", handles, labels)
