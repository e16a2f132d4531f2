"""The plot of accuracy against output tokens, one line for each strategy."""

from jaxpeft import plotting
from jaxpeft.evaluation.curves import table

_LOOKS = {
  "greedy": (plotting.GREY, "*"),
  "self_consistency": (plotting.BLUE, "o"),
  "best_of_n": (plotting.GREEN, "s"),
  "best_of_n, logprob": (plotting.PINK, "v"),
  "best_of_n, reward": (plotting.BLACK, "h"),
  "weighted_vote": (plotting.SKY, "X"),
  "self_refine": (plotting.YELLOW, "^"),
  "sets": (plotting.ORANGE, "D"),
  "sets, verified_first": (plotting.BLACK, "P"),
  "sets_no_verify": (plotting.SKY, "x"),
  "sets_no_correct": (plotting.GREY, "+"),
}


def draw(result: dict, path, title: str):
  """Writes the picture.

  A strategy's line goes through its best cells for their tokens; its other cells are
  points. The grey line is the envelope of all.

  Args:
    result: from `scale.run`.
    path: of the file.
    title: above the picture.
  """
  rows = result["rows"]
  names = [name for name in _LOOKS if any(x["strategy"] == name for x in rows)]
  tokens = [max(x["tokens"], 0.1) for x in rows]
  with plotting.picture(path, 6.4, 4.2) as fig:
    axes = fig.subplots()
    every = [(max(x["tokens"], 0.1), x["accuracy"]) for x in table.envelope(rows)]
    axes.step(
      *zip(*every, strict=True), where="post", color="0.8", linewidth=5, zorder=1
    )
    for name in names:
      color, marker = _LOOKS[name]
      own = [x for x in rows if x["strategy"] == name]
      best = table.envelope(own)
      for some, line, alpha in ((own, "none", 0.3), (best, "-", 1.0)):
        points = [(max(x["tokens"], 0.1), x["accuracy"]) for x in some]
        axes.plot(
          *zip(*points, strict=True), linestyle=line, marker=marker, color=color,
          alpha=alpha, markersize=4, label=name if some is best else None,
        )  # fmt: skip
    plotting.log_scale(axes.xaxis, low=min(tokens) / 1.2, high=max(tokens) * 1.2)
    plotting.linear_scale(axes.yaxis)
    top = max(x["accuracy"] for x in rows)
    axes.set_ylim(0, 1.08 * max(top, 0.05))
    axes.set(xlabel="output tokens of a problem, on average", ylabel="accuracy")
    handles, labels = axes.get_legend_handles_labels()
    plotting.header(fig, title, handles, labels)
