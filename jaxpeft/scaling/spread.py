"""The outcomes of `sensitivity` as a table, sentences and a picture."""

import numpy as np

from jaxpeft import plotting
from jaxpeft.scaling import report
from jaxpeft.scaling.sensitivity import CHINCHILLA, KAPLAN, Outcome

_COLORS = {1: plotting.ORANGE, 2: plotting.GREEN, 3: plotting.BLUE}
_MARKS = {1: "o", 2: "s", 3: "D"}


def text(found: list[Outcome], c: float) -> str:
  """A table of outcomes, those that failed, and what the spread means."""
  rows = [["choice", "approach", "points", "a", f"N at {c:.3g} FLOPs", "tokens per N"]]
  for one in found:
    if one.a is not None and one.n is not None and one.ratio is not None:
      rows.append(
        [
          f"{one.group}: {one.choice}", str(one.approach), str(one.points),
          f"{one.a:.3f}", plotting.short(one.n), plotting.short(one.ratio),
        ]
      )  # fmt: skip
  lines = report.table(rows)
  failed = [one for one in found if one.a is None]
  if failed:
    lines += ["", "Not fitted:"]
    lines += [f"  {x.choice}, approach {x.approach}: {x.why}" for x in failed]
  return "\n".join([*lines, "", *meaning(found, c)])


def meaning(found: list[Outcome], c: float) -> list[str]:
  """Sentences: the spread, and what is nearest to Kaplan and to Chinchilla."""
  good = [x for x in found if x.a is not None]
  a = np.array([x.a for x in good], float)
  n = np.array([x.n for x in good], float)
  lines = [
    f"The same data give a from {a.min():.2f} to {a.max():.2f} (middle half "
    f"{np.percentile(a, 25):.2f} to {np.percentile(a, 75):.2f}), and for {c:.3g} FLOPs "
    f"an N from {plotting.short(n.min())} to {plotting.short(n.max())}."
  ]
  for name, target in (("Kaplan's .73", KAPLAN), ("Chinchilla's .50", CHINCHILLA)):
    one = good[int(np.abs(a - target).argmin())]
    lines.append(
      f"Nearest to {name}: a = {one.a:.3f} with {one.choice}, approach {one.approach}."
    )
  for group in dict.fromkeys(x.group for x in good):
    own = [x.a for x in good if x.group == group and x.a is not None]
    if len(own) > 1 and group != "as given":
      lines.append(f"Choices of {group} move a from {min(own):.2f} to {max(own):.2f}.")
  return lines


def draw(found: list[Outcome], c: float, title: str, path):
  """Writes a picture: a on the left, the best N on the right, a row for each choice."""
  good = [x for x in found if x.a is not None]
  names = list(dict.fromkeys(f"{x.group}: {x.choice}" for x in good))
  row = {name: len(names) - 1 - i for i, name in enumerate(names)}
  with plotting.picture(path, 9.5, 1.8 + 0.2 * len(names)) as fig:
    left, right = fig.subplots(1, 2, sharey=True)
    for approach, color in _COLORS.items():
      own = [x for x in good if x.approach == approach]
      y = [row[f"{x.group}: {x.choice}"] for x in own]
      style = dict(color=color, marker=_MARKS[approach], ls="", ms=5)
      left.plot([x.a for x in own], y, label=f"approach {approach}", **style)
      right.plot([x.n for x in own], y, **style)
    for value, name in ((KAPLAN, "Kaplan .73"), (CHINCHILLA, "Chinchilla .50")):
      left.axvline(value, color=plotting.GREY, ls="--" if value == KAPLAN else ":")
      left.annotate(
        name, (value, len(names) - 0.4), fontsize=7, ha="center", annotation_clip=False
      )
    left.set_yticks(range(len(names)), names[::-1], fontsize=6.5)
    left.set(xlabel="a, where the best N grows as C^a", ylim=(-0.6, len(names) - 0.1))
    plotting.linear_scale(left.xaxis)
    n = np.array([x.n for x in good], float)
    plotting.log_scale(right.xaxis, plotting.short, 0.8 * n.min(), 1.25 * n.max())
    right.set(xlabel=f"best parameters for {c:.3g} FLOPs")
    handles, labels = left.get_legend_handles_labels()
    plotting.header(fig, title, handles, labels)
