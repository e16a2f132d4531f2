"""pareto.png: no name covers anything, and the front is the right one."""

import importlib.util
import itertools
import pathlib

import matplotlib.image
import numpy as np
import pytest

from jaxpeft.sweeps import labels, plots
from tests.support.figures import watch

ROOT = pathlib.Path(__file__).parents[2]


def rows(count: int, spread: float, seed: int = 0):
  """Methods at close positions, with names of 3 to 20 letters."""
  rng = np.random.default_rng(seed)
  out = []
  for i in range(count):
    accuracy = float(np.clip(0.95 + 0.02 * rng.normal(), 0, 1))
    low, high = max(0.0, accuracy - 0.04), min(1.0, accuracy + 0.02)
    name = f"{i}_" + "abcdefghijklmnopqrstuvwx"[: rng.integers(1, 18)]
    trained = int(80_000 * np.exp(spread * rng.normal()))
    row = dict(name=name, trained=trained, accuracy=accuracy, interval=(low, high))
    out.append(row)
  return out


@pytest.fixture
def draw(tmp_path, monkeypatch):
  """Draws rows; returns the figure, as it was written."""
  figures = watch(monkeypatch)

  def call(found):
    plots.pareto(found, tmp_path / "pareto.png")
    fig = figures[-1]
    height, width = matplotlib.image.imread(tmp_path / "pareto.png").shape[:2]
    assert (width, height) == tuple(np.round(fig.bbox.size).astype(int))
    return fig

  return call


def boxes(fig):
  """The boxes of the names, as they were drawn, in the order of the rows."""
  return np.array([text.get_window_extent().extents for text in fig.axes[0].texts])


def marks(fig, found):
  """The boxes of the points and their error bars."""
  data = fig.axes[0].transData
  out = []
  for row in found:
    at = np.array([data.transform((row["trained"], y)) for y in row["interval"]])
    x, y = data.transform((row["trained"], row["accuracy"]))
    out += [
      (x - 4, y - 4, x + 4, y + 4),
      (x - 1, at[:, 1].min(), x + 1, at[:, 1].max()),
    ]
  return np.array(out)


@pytest.mark.parametrize(
  ("count", "spread"), [(1, 0.0), (2, 0.0), (20, 0.02), (24, 0.0), (25, 0.6)]
)
def test_no_name_covers_another_or_a_point(count, spread, draw):
  found = rows(count, spread)
  fig = draw(found)
  names, axes = boxes(fig), fig.axes[0]
  assert [text.get_text() for text in axes.texts] == [row["name"] for row in found]
  assert all(text.get_visible() for text in axes.texts)
  both = labels.overlap(names, names)
  assert not both[~np.eye(count, dtype=bool)].any()
  assert not labels.overlap(names, marks(fig, found)).any()
  x0, y0, x1, y1 = axes.bbox.extents
  assert (names[:, :2] >= (x0 - 1, y0 - 1)).all()
  assert (names[:, 2:] <= (x1 + 1, y1 + 1)).all()


def test_a_name_that_is_away_has_a_line_to_its_own_point(draw):
  found = rows(24, 0.02)
  fig = draw(found)
  axes, names = fig.axes[0], boxes(fig)
  points = axes.transData.transform([(r["trained"], r["accuracy"]) for r in found])
  lines = [line.get_xydata() for line in axes.lines if line.get_color() == "0.6"]
  for box, point in zip(names, points, strict=True):
    gap = np.hypot(*np.maximum(0, np.maximum(box[:2] - point, point - box[2:])))
    to = [line for line in lines if np.abs(line[1] - point).max() < 0.5]
    near = [
      line
      for line in to
      if (line[0] >= box[:2] - 6).all() and (line[0] <= box[2:] + 6).all()
    ]
    assert near or gap < 20


def test_lines_to_the_points_of_a_stack_do_not_cross():
  points = [(100 + 3 * (i % 3), 200 + 2 * i) for i in range(12)]
  found = labels.place(points, [(80, 20)] * 12, [], (0, 0, 600, 500))
  order = sorted(range(12), key=lambda i: -points[i][1])
  tops = [found[i].box[1] for i in order]
  assert tops == sorted(tops, reverse=True)
  assert all(label.line for label in found)


def test_the_same_points_give_the_same_places_and_too_many_none():
  rng = np.random.default_rng(0)
  points, sizes = rng.random((30, 2)) * 400, [(60, 20)] * 30
  area = (0, 0, 500, 500)
  first = labels.place(points, sizes, [], area)
  assert first == labels.place(points, sizes, [], area)
  assert labels.place(points, sizes, [], (0, 0, 100, 100)) is None


def test_crossings_are_those_of_the_definition():
  rng = np.random.default_rng(0)
  lines = rng.random((20, 2, 2))
  low = rng.random((15, 2))
  found = np.concatenate([low, low + 0.2 * rng.random((15, 2))], 1)
  t = np.linspace(0, 1, 5001)[:, None]
  expected = 0
  for line, box in itertools.product(lines, found):
    at = line[0] + t * (line[1] - line[0])
    expected += bool(((at > box[:2]) & (at < box[2:])).all(1).any())
  assert labels.crossings(lines, found) == expected > 20


def test_the_front_is_what_nothing_as_small_equals(draw):
  found = rows(20, 0.8, seed=3)
  best = [
    row
    for row in found
    if not any(
      other is not row
      and other["trained"] <= row["trained"]
      and other["accuracy"] >= row["accuracy"]
      for other in found
    )
  ]
  names = {row["name"] for row in best}
  assert {row["name"] for row in plots.front(found)} == names
  bold = {t.get_text() for t in draw(found).axes[0].texts if t.get_weight() == "bold"}
  assert bold == names


def test_ticks_are_plain(draw):
  found = [
    dict(name=str(n), trained=n, accuracy=0.5, interval=(0.3, 0.7))
    for n in (3_000, 1_000_000)
  ]
  axes = draw(found).axes[0]
  low, high = axes.get_xlim()
  shown = [
    label.get_text()
    for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    if low <= at <= high
  ]
  assert shown == ["10 k", "100 k", "1 M"]


def test_the_pictures_of_the_docs_come_from_their_tables(tmp_path):
  path = ROOT / "tools" / "redraw_docs.py"
  spec = importlib.util.spec_from_file_location("redraw_docs", path)
  tool = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tool)
  found = {row["name"]: row for row in tool.methods()}
  assert len(found) >= 18
  assert found["vera"] == dict(
    name="vera", trained=12_800, accuracy=0.943, interval=(0.902, 0.968)
  )
  assert (0.3, "steps", 0.8, 0.75, 0.835) in tool.fractions()
  tool.main(tmp_path)
  for name in ("compare.png", "token_learning.png"):
    drawn = matplotlib.image.imread(tmp_path / name)
    stored = matplotlib.image.imread(ROOT / "docs" / name)
    assert drawn.shape == stored.shape, f"{name}: run tools/redraw_docs.py"
