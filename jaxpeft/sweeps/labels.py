"""Places the names of points in a picture so that no two cover each other.

Points that nearly coincide share a stack of names, in the order of their heights, which
stands at the nearest free place. Lines then lead from the names to their points. All
coordinates are pixels, x to the right and y upward; a box is (x0, y0, x1, y1). The
result depends on nothing but the arguments.
"""

from typing import NamedTuple

import numpy as np

_GRID = 6  # pixels between places that are tried
_GAP = 9  # pixels between a point and its name
_STACK_GAP = 34  # the same for a stack, whose lines need room to fan out
_CROSSING = 150  # pixels of distance that a line through a name or a point costs


class Label(NamedTuple):
  """Where a name stands."""

  box: tuple[float, float, float, float]
  left: bool  # whether the name stands to the left of its point and ends there
  line: bool  # whether a line must lead to the point


def place(points, sizes, obstacles, area) -> list[Label] | None:
  """The places of all names, or None if there is not enough room.

  Args:
    points: float[n, 2].
    sizes: float[n, 2], width and height of each name; all are about equally high.
    obstacles: float[m, 4], boxes that no name may cover, e.g. of points and error bars.
    area: the box that names must not leave.
  """
  points, sizes = np.asarray(points, float), np.asarray(sizes, float)
  taken = np.asarray(obstacles, float).reshape(-1, 4)
  found: list[Label | None] = [None] * len(points)
  for members in clusters(points, sizes[:, 1].max()):
    at = _stack(points[members], sizes[members], taken, area)
    if at is None:
      return None
    for i, label in zip(members, at, strict=True):
      found[i] = label
    taken = np.concatenate([taken, [label.box for label in at]])
  return [label for label in found if label]


def clusters(points, height: float) -> list[list[int]]:
  """Indices of points whose names would collide, largest cluster first, top to bottom.

  Args:
    points: float[n, 2].
    height: of a name.
  """
  groups = []
  for i, point in enumerate(points):
    close = [
      group
      for group in groups
      if (np.abs(points[group] - point) < (1.5 * height, 1.1 * height)).all(1).any()
    ]
    merged = sorted([i, *(j for group in close for j in group)])
    groups = [group for group in groups if group not in close] + [merged]
  for group in groups:
    group.sort(key=lambda i: (-points[i][1], points[i][0], i))
  return sorted(groups, key=lambda group: (-len(group), group[0]))


def _stack(points, sizes, taken, area) -> list[Label] | None:
  """Labels of one cluster, from top to bottom, at the best free place."""
  count, (width, height) = len(points), sizes.max(0)
  gap = _GAP if count == 1 else _STACK_GAP
  near = np.array([*points.min(0), *points.max(0)])
  x0, y0, x1, y1 = area
  size = np.array([width, height * count])
  middle = (near[1] + near[3] - size[1]) / 2
  exact = [(near[2] + gap, middle), (near[0] - gap - width, middle)]
  grid = np.meshgrid(
    np.arange(x0, x1 - width, _GRID), np.arange(y0, y1 - size[1], _GRID)
  )
  at = np.concatenate([exact, np.stack(grid, -1).reshape(-1, 2)])
  boxes = np.concatenate([at, at + size], 1)
  inside = (boxes[:, :2] >= (x0, y0)).all(1) & (boxes[:, 2:] <= (x1, y1)).all(1)
  boxes = boxes[inside & ~overlap(boxes, taken).any(1)]
  away = np.maximum(boxes[:, :2] - near[2:], near[:2] - boxes[:, 2:])  # gaps in x and y
  right = boxes[:, 0] >= near[2]
  beside = away[:, 0] >= min(gap, _STACK_GAP)
  if count > 1:  # the lines leave a stack at a side
    boxes, away, right = boxes[beside], away[beside], right[beside]
  else:
    clear = (away >= _GAP).any(1)
    boxes, away, right = boxes[clear], away[clear], right[clear]
  if not len(boxes):
    return None
  off = np.abs((boxes[:, 1] + boxes[:, 3]) / 2 - (near[1] + near[3]) / 2)
  cost = np.hypot(*np.maximum(away, 0).T) + 0.3 * off + 4.0 * ~right
  own = (taken[:, None, :2] <= points) & (points <= taken[:, None, 2:])
  others = taken[~own.all(2).any(1)]
  best = None
  for i in np.argsort(cost, kind="stable")[:300]:
    if best and cost[i] >= best[0]:
      break
    labels = _labels(boxes[i], points, sizes, height, gap)
    pairs = zip(labels, points, strict=True)
    lines = [(end(label, point), point) for label, point in pairs if label.line]
    total = cost[i] + _CROSSING * crossings(lines, others)
    if best is None or total < best[0]:
      best = total, labels
  return best[1] if best else None


def _labels(box, points, sizes, height, gap) -> list[Label]:
  """The names of a stack that fills a box."""
  left = bool(box[2] <= points[:, 0].min())
  labels = []
  for k, (w, h) in enumerate(sizes):
    x = box[2] - w if left else box[0]
    y = box[3] - (k + 0.5) * height - h / 2
    own = (float(x), float(y), float(x + w), float(y + h))
    px, py = points[k]
    away = np.hypot(max(own[0] - px, px - own[2], 0), max(own[1] - py, py - own[3], 0))
    labels.append(Label(own, left, len(points) > 1 or bool(away > 1.6 * gap)))
  return labels


def end(label: Label, point) -> tuple[float, float]:
  """Where the line to a point leaves a name: at the middle of the side next to it."""
  x0, y0, x1, y1 = label.box
  if label.left:
    return x1, (y0 + y1) / 2
  if x0 >= point[0]:
    return x0, (y0 + y1) / 2
  return (x0 + x1) / 2, y0 if y0 > point[1] else y1


def overlap(a, b) -> np.ndarray:
  """bool[n, m], whether box i of a [n, 4] and box j of b [m, 4] share an area."""
  a, b = np.asarray(a)[:, None], np.asarray(b)[None]
  return np.all((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), axis=-1)


def crossings(lines, boxes) -> int:
  """How often lines [n, 2, 2], pairs of ends (x, y), go through boxes [m, 4]."""
  if not len(lines) or not len(boxes):
    return 0
  lines = np.asarray(lines)[:, None]
  start, step = lines[:, :, 0], lines[:, :, 1] - lines[:, :, 0]
  step = np.where(step == 0, 1e-9, step)
  a, b = (boxes[None, :, :2] - start) / step, (boxes[None, :, 2:] - start) / step
  enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
  return int((np.maximum(enter, 0) < np.minimum(leave, 1)).sum())
