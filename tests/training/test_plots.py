"""loss.png: what is on it, read back from the figure that was written."""

import math

import matplotlib.image
import numpy as np
import pytest

from jaxpeft.training import log, plots
from tests.support.figures import watch

FINAL = dict(
  final=True,
  step=200,
  adapter_step=150,
  base_accuracy=0.05,
  base_accuracy_ci95=[0.03, 0.09],
  accuracy=0.9,
  accuracy_ci95=[0.85, 0.93],
  problems=200,
)


def history(steps: int, every: int = 1, held: int = 0, start=2.0, end=0.05):
  """Lines of metrics.jsonl of a run whose loss falls evenly in its logarithm."""
  lines = [dict(step=0, eval_loss=start)] if held else []
  for step in range(every, steps + 1, every):
    loss = start * (end / start) ** (step / steps)
    lines.append(dict(step=step, loss=loss, lr=0.01))
    if held and step % held == 0:
      lines.append(dict(step=step, eval_loss=1.1 * loss))
  return lines


@pytest.fixture
def draw(tmp_path, monkeypatch):
  """Draws lines; returns (axes, {label: line}, labels of the legend, figure)."""
  figures = watch(monkeypatch)

  def call(lines, final=None, title="lora: 81,920 trainable parameters"):
    path = tmp_path / "loss.png"
    plots.loss(path, lines, title, final)
    height, width = matplotlib.image.imread(path).shape[:2]
    assert height >= 600
    assert width >= 900
    fig = figures[-1]
    axes = fig.axes[0]
    shown = {line.get_label(): line for line in axes.lines}
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    return axes, shown, legend, fig

  return call


def ticks(axis):
  """The labels of an axis that are within its limits."""
  low, high = sorted(axis.get_view_interval())
  pairs = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
  return [label.get_text() for at, label in pairs if low <= at <= high]


def test_a_run_has_its_base_its_held_out_points_the_kept_step_and_accuracy(draw):
  axes, shown, legend, fig = draw(history(200, 10, 50), FINAL)
  kept = f"kept: step 150, {1.1 * 2 * (0.05 / 2) ** 0.75:.3g}"
  assert legend == ["training batch", "held out", "before training: 2", kept]
  assert list(shown["held out"].get_xdata()) == [0, 50, 100, 150, 200]
  assert list(shown["training batch"].get_xdata()) == list(range(10, 201, 10))
  assert list(shown["before training: 2"].get_ydata()) == [2.0, 2.0]
  assert list(shown[kept].get_xdata()) == [150]
  assert axes.get_yscale() == "log"
  side = fig.axes[1]
  assert [text.get_text() for text in side.texts] == ["5.0%", "90.0%"]
  bars = [c.get_segments()[0][:, 1] for c in side.collections]
  np.testing.assert_allclose(bars, [[0.03, 0.09], [0.85, 0.93]])
  assert side.get_xlabel() == "200 problems"


@pytest.mark.parametrize(
  ("start", "end", "scale", "labels"),
  [
    (2.5, 0.05, "log", ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
    (1.5, 0.9, "linear", ["0.9", "1", "1.1", "1.2", "1.3", "1.4"]),
    (2.0, 1e-4, "log", ["0.0001", "0.001", "0.01", "0.1", "1"]),
  ],
)
def test_ticks_are_plain_numbers_and_the_scale_follows_the_range(
  start, end, scale, labels, draw
):
  axes, *_ = draw(history(10, start=start, end=end))
  assert axes.get_yscale() == scale
  assert ticks(axes.yaxis) == labels
  assert not axes.yaxis.get_minorticklocs().size


def test_one_step_and_three(draw):
  axes, shown, legend, _ = draw(history(1, held=1))
  assert (legend[:2], ticks(axes.xaxis)) == (["training batch", "held out"], ["0", "1"])
  assert shown["training batch"].get_marker() == "."  # one point is no line
  axes, shown, legend, fig = draw(history(3))
  assert (legend, ticks(axes.xaxis)) == (["training batch"], ["0", "1", "2", "3"])
  assert len(fig.axes) == 1


def test_a_long_run_is_smoothed(draw):
  rng = np.random.default_rng(0)
  lines = [dict(step=i, loss=1 + rng.random()) for i in range(1, 100_001)]
  lines[40_000]["loss"] = 1e30  # a spike must not hide everything else
  axes, shown, legend, _ = draw(lines)
  assert legend == ["training batch", "its mean over 2,500 steps"]
  means = shown["its mean over 2,500 steps"].get_ydata()
  inside = means < 10
  assert 380 < inside.sum() < 395  # of 400, those that are near the spike
  np.testing.assert_allclose(means[inside][2:-2], 1.5, atol=0.05)
  assert axes.get_ylim()[1] < 1e4
  assert ticks(axes.xaxis)[-1] == "100,000"


def test_means_have_no_lag():
  at, means = plots.smooth(np.arange(1000.0), 101)
  np.testing.assert_allclose(means, at)
  noise = np.random.default_rng(0).normal(size=1000)
  assert plots.smooth(noise, 101)[1][50:-50].std() < 0.2


def test_what_is_not_finite_is_marked_and_hides_nothing(draw):
  lines = history(50, held=10)
  lines[4]["loss"], lines[9]["loss"] = math.nan, math.inf
  lines[-1]["eval_loss"] = -math.inf
  axes, shown, legend, _ = draw(lines)
  assert list(shown["not finite (3)"].get_xdata()) == [4, 9, 50]
  assert len(shown["training batch"].get_xdata()) == 48
  assert axes.get_yscale() == "log"
  axes, _, legend, _ = draw([dict(step=1, loss=math.nan)])
  assert legend == ["not finite (1)"]
  assert axes.texts[0].get_text() == "no loss to draw"


@pytest.mark.parametrize(
  "lines",
  [[], [dict(step=0, base_accuracy=0.1)], [dict(step=1, loss="x", eval_loss=True)]],
)
def test_a_run_without_losses_is_an_empty_picture(lines, draw):
  axes, _, legend, _ = draw(lines)
  assert (legend, axes.texts[0].get_text()) == ([], "no loss to draw")


def test_zero_and_negative_losses_are_drawn(draw):
  losses = [1.0, 0.0, -0.5]
  axes, shown, *_ = draw([dict(step=i, loss=x) for i, x in enumerate(losses, 1)])
  assert axes.get_yscale() == "linear"
  assert list(shown["training batch"].get_ydata()) == losses


def test_a_long_title_wraps_inside_the_picture(draw):
  title = "a name with $mathematics$ and many words " * 5 + "10 trainable parameters"
  *_, fig = draw(history(10, 2), FINAL, title)
  text = fig.legends[0].get_title()
  assert text.get_text().split() == title.split()
  assert not text.get_parse_math()  # a dollar sign in a name is no formula
  box = text.get_window_extent()
  assert 0 <= box.x0 < box.x1 <= fig.bbox.x1
  assert box.y1 <= fig.bbox.y1


def test_accuracy_of_an_old_run_has_no_interval_of_the_base(draw):
  *_, fig = draw(history(10, 2), FINAL | dict(base_accuracy_ci95=None))
  assert [text.get_text() for text in fig.axes[1].texts] == ["5.0%", "90.0%"]


def test_a_resumed_run_draws_all_its_lines_once(tmp_path, monkeypatch):
  first = log.Log(tmp_path, -1)
  for step in (2, 4, 6):
    first.write(step, loss=1.0 / step)
  first.close()
  again = log.Log(tmp_path, 4)  # the checkpoint is of step 4
  again.write(6, loss=0.1)
  seen = {}
  monkeypatch.setattr(plots, "_train", lambda axes, *xy: seen.update(xy=xy))
  again.plot(tmp_path / "loss.png", "x")
  again.close()
  assert [list(x) for x in seen["xy"]] == [[2, 4, 6], [0.5, 0.25, 0.1]]
  assert (tmp_path / "loss.png").stat().st_size > 5000
