"""The plot of memory plans."""

import matplotlib.image
import pytest

from jaxpeft.planning import memory, table
from tests.support.figures import watch

MB, GB = 10**6, 10**9


def plan(temporaries: int, traced: dict, **parts) -> memory.Plan:
  sizes = dict.fromkeys(("base", "quantized", "trainable", "optimizer", "batch"), 0)
  sizes |= parts
  return memory.Plan(
    target="cpu", devices=1, scales=0, temporaries=temporaries, traced=traced,
    total=sum(sizes.values()) + temporaries, collectives=[], flops=1.0, weights=1,
    **sizes,
  )  # fmt: skip


@pytest.fixture
def draw(tmp_path, monkeypatch):
  """Draws plans; returns the figure and the labels of its legend."""
  figures = watch(monkeypatch)

  def call(plans):
    table.plot(plans, str(tmp_path / "memory.png"))
    assert matplotlib.image.imread(tmp_path / "memory.png").shape[1] == 1200
    legend = figures[-1].legends[0].get_texts()
    return figures[-1], [text.get_text() for text in legend]

  return call


def test_bars_add_up_and_the_legend_names_what_is_visible(draw):
  plans = {
    "LoRA": plan(6 * GB, dict(gradients=GB, activations=4 * GB), base=10 * GB),
    "QLoRA": plan(
      6 * GB, dict(gradients=GB, activations=9 * GB), quantized=3 * GB, batch=100
    ),
  }
  fig, legend = draw(plans)
  names = ["frozen weights", "weights in 4 bits", "gradients", "activations", "rest"]
  assert legend == names  # neither an optimizer nor logits: no bar shows them
  axes = fig.axes[0]
  assert [label.get_text() for label in axes.get_yticklabels()] == ["LoRA", "QLoRA"]
  widths = {c.get_label(): [bar.get_width() for bar in c] for c in axes.containers}
  assert widths["activations"] == [4, 5]  # cut off at what was compiled
  last = axes.containers[-1]
  assert [bar.get_x() + bar.get_width() for bar in last] == pytest.approx([16, 9])
  assert [sum(x) for x in zip(*widths.values(), strict=True)] == pytest.approx([16, 9])
  assert [text.get_text().strip() for text in axes.texts] == ["16", "9"]
  assert axes.get_xlabel() == "GB on one device, compiled"
  low, high = sorted(axes.get_ylim())
  assert all(low < y < high for y in range(2))
  assert axes.yaxis_inverted()


def test_small_models_are_in_megabytes(draw):
  fig, legend = draw({"lora": plan(2 * MB, {}, base=4 * MB, trainable=MB)})
  assert legend == ["frozen weights", "trained", "rest"]
  assert fig.axes[0].get_xlabel() == "MB on one device, compiled"
  assert [text.get_text().strip() for text in fig.axes[0].texts] == ["7"]
