"""Measured points: sizes, tokens, FLOPs and losses of trained models, read from a file.

A file is CSV with a header, or JSONL. Columns are found by well-known names: those of
Epoch AI's copy of Chinchilla's points, of Porian et al., of the Gemstones and of the
study of this project. `--columns=n=MyN,loss=MyLoss` names others. Two of n, d and c
give the third by C = 6 N D.
"""

import dataclasses
import itertools
import pathlib
import re

import numpy as np

from jaxpeft.errors import InputError, unknown
from jaxpeft.scaling import rows as tables

FLOPS = 6  # of training, for each parameter and token
MOST = {1: 100_000, 2: 100_000, 3: 10_000}  # points of an approach
LEAST = 6  # points: one more than the parameters of the parametric law

# what -> names of columns, compared without case and punctuation; the first found wins
NAMES = {
  "n": "n params parameters model_size params_active_precise num_params n_params",
  "d": "d tokens training_tokens train_tokens num_tokens d_tokens",
  "c": "c flops training_flop training_flops train_flops compute",
  "loss": "loss final_loss val_loss eval_loss test_loss",
  "run": "run run_name run_id name",
  "width": "width d_model hidden_size",
  "depth": "depth layers n_layers num_layers",
  "body": "n_no_embed n_no_embeds non_embedding_params params_no_embed n_e",
  "budget": "budget isoflop",
}
_NAME = 200  # letters of a run's name that count
_POSITIVE = ("n", "d", "c", "loss", "width", "depth", "body", "budget")


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """Trained models, or points of training curves; every array has the length P.

  n: float64[P], parameters.
  d: float64[P], tokens.
  loss: float64[P], in nats per token.
  c: float64[P], FLOPs of training.
  run: str[P], the training curve that a point lies on.
  width, depth: float64[P], or None.
  body: float64[P], parameters without embeddings, or None.
  budget: float64[P], the FLOPs that a point was made for, or None.
  other: the remaining columns as text, for subsets.
  counted: how n and c were counted, in words.
  """

  n: np.ndarray
  d: np.ndarray
  loss: np.ndarray
  c: np.ndarray
  run: np.ndarray
  width: np.ndarray | None = None
  depth: np.ndarray | None = None
  body: np.ndarray | None = None
  budget: np.ndarray | None = None
  other: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  counted: str = "n as given, C = 6 N D"

  def __len__(self) -> int:
    return len(self.n)

  def take(self, rows) -> "Points":
    """The points of a mask, or of an array of row numbers."""
    new = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, np.ndarray):
        new[field.name] = value[rows]
    other = {name: value[rows] for name, value in self.other.items()}
    return dataclasses.replace(self, **new, other=other)

  def curves(self) -> bool:
    """Whether some training curve has several points."""
    return len(np.unique(self.run)) < len(self)

  def rows_of_runs(self) -> list[np.ndarray]:
    """The row numbers of each training curve, by the curves' names."""
    _, number = np.unique(self.run, return_inverse=True)
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1)

  def check(self, approach: int):
    """Raises InputError if an approach would take too much memory and time."""
    if len(self) > (most := MOST.get(approach, len(self))):
      raise InputError(
        f"{len(self):,} points are more than the {most:,} of approach {approach}; give "
        "the ends of the runs, fewer points of each curve, or --where=COLUMN=VALUE"
      )

  def where(self, column: str, value: str) -> "Points":
    """The points with this text in a column.

    Raises:
      InputError: there is no such column or value.
    """
    known = self.other | {"run": self.run}
    if column not in known:
      raise unknown("column", column, known)
    found = known[column] == value
    if not found.any():
      values = np.unique(known[column])
      raise unknown(f"value of {column}", value, [str(x)[:80] for x in values[:50]])
    return self.take(found)

  def without_highest(self, count: int) -> "Points":
    """The points but those with the `count` highest losses, e.g. outliers."""
    if not 0 <= count <= len(self) - LEAST:
      raise InputError(
        f"{count} highest losses cannot be dropped from {len(self)} points; at least "
        f"{LEAST} must stay"
      )
    return self.take(np.sort(np.argsort(self.loss, kind="stable")[: len(self) - count]))

  def without_embeddings(self, tables: int = 2, vocabulary: int = 50_304) -> "Points":
    """n without the parameters of embeddings; c is left alone.

    Args:
      tables: 2 leaves out the input's and the output's, 1 the input's only.
      vocabulary: tokens of a table, whose size is vocabulary * width. The column of
        parameters without embeddings, if there is one, is taken for 2.
    Raises:
      InputError: there is no column that says how many these are.
    """
    if tables == 2 and self.body is not None:
      n = self.body
    elif self.width is not None:
      n = self.n - tables * vocabulary * self.width
    else:
      raise InputError(
        "parameters without embeddings need a column n_no_embed, or one of widths; "
        "name it, e.g. --columns=width=WIDTH"
      )
    if n.min() <= 0:
      at = int(n.argmin())
      raise InputError(
        f"point {at + 1} has {self.n[at]:.4g} parameters, but more in embeddings: "
        f"{tables} x {vocabulary} x its width; give the right --vocabulary"
      )
    name = {1: "input embeddings", 2: "embeddings"}[tables]
    return dataclasses.replace(self, n=n, counted=f"n without {name}, C as given")


def make(n=None, d=None, loss=None, c=None, run=None, **more) -> Points:
  """Points from arrays; two of n, d and c give the third by C = 6 N D.

  Raises:
    InputError: a value is not a positive number, or too few are given.
  """
  given = dict(n=n, d=d, c=c, loss=loss, width=None, depth=None, body=None, budget=None)
  given |= {name: more.pop(name) for name in tuple(more) if name in given}
  arrays = {k: np.asarray(v, np.float64) for k, v in given.items() if v is not None}
  if "loss" not in arrays or len({"n", "d", "c"} & set(arrays)) < 2:
    raise InputError("points need losses and two of n, d and c")
  lengths = {name: value.shape for name, value in arrays.items()}
  if len(set(lengths.values())) > 1 or arrays["loss"].ndim != 1:
    raise InputError(f"arrays of points differ in their shapes: {lengths}")
  for name, value in arrays.items():
    least, most = tables.limits(name)
    bad = ~((value >= least) & (value <= most))
    if bad.any():
      at = int(bad.argmax())
      raise InputError(
        f"{name} of point {at + 1} is {value[at]}, no positive number from {least:g} "
        f"to {most:g}"
      )
  if "d" not in arrays:
    arrays["d"] = arrays["c"] / (FLOPS * arrays["n"])
  if "n" not in arrays:
    arrays["n"] = arrays["c"] / (FLOPS * arrays["d"])
  if "c" not in arrays:
    arrays["c"] = FLOPS * arrays["n"] * arrays["d"]
  runs = np.arange(len(arrays["loss"])).astype(str) if run is None else np.asarray(run)
  return Points(**arrays, run=runs.astype(str), **more)


def read(path, columns: dict[str, str] | str = "", least: int = LEAST) -> Points:
  """The points of a CSV or JSONL file.

  Rows of step 0 are left out. If there are a width, a depth and Gemstones' column of
  parameters, but no FLOPs, these are counted as Gemstones do.

  Args:
    path: the file.
    columns: what -> name, or the same as the text `n=Params,loss=val`; the keys are
      those of `NAMES`. Others are found by their names.
    least: how many points are needed.
  Raises:
    InputError: the file is no table, a column is missing, a value is not a positive
      number, or there are too few points; the message names it.
  """
  path = pathlib.Path(path)
  header, rows, lines = tables.table(path)
  found = _columns(columns, header, path)
  if "step" in header:
    keep = [str(row.get("step", "")).strip() not in _ZERO for row in rows]
    rows = list(itertools.compress(rows, keep))
    lines = list(itertools.compress(lines, keep))
  _enough(len(rows), least, path)
  values = {}
  for what in (*_POSITIVE, "run"):
    if what in found:
      texts = [row.get(found[what], "") for row in rows]
      values[what] = (
        np.asarray([str(text)[:_NAME] for text in texts])
        if what == "run"
        else tables.numbers(texts, what, found[what], path, lines)
      )
  used = set(found.values())
  values["other"] = {
    name: np.asarray([str(row.get(name, "")) for row in rows], object)
    for name in header if name not in used
  }  # fmt: skip
  if "c" in found:
    values["counted"] = "n and C as given"
  if "c" not in found and found.get("n") == "params_active_precise":
    if {"width", "depth"} <= set(found):
      from jaxpeft.scaling import flops

      each = flops.gemstones(values["width"], values["depth"])
      values |= dict(c=each * values["d"], counted="n as given, C as Gemstones count")
  return make(**values)


_ZERO = ("0", "0.0")


def _enough(count: int, least: int, path):
  if count < least:
    raise InputError(f"{path} has {count} points; a fit needs at least {least}")


def _plain(name: str) -> str:
  return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _columns(given, header: list[str], path) -> dict[str, str]:
  """what -> the column that has it; raises InputError for what is missing."""
  if isinstance(given, str):
    given = tables.pairs(given, "columns", "n=Params,loss=val_loss")
  for what, name in given.items():
    if what not in NAMES:
      raise unknown("column", what, NAMES)
    if name not in header:
      raise unknown(f"column of {path}", name, header)
  plain = {_plain(name): name for name in reversed(header)}
  found = dict(given)
  for what, names in NAMES.items():
    match = next((plain[name] for name in names.split() if name in plain), None)
    if what not in found and match is not None and match not in found.values():
      found[what] = match
  missing = [] if "loss" in found else ["loss"]
  if len({"n", "d", "c"} & set(found)) < 2:
    missing.append("two of n (parameters), d (tokens), c (FLOPs)")
  if missing:
    raise InputError(
      f"{path} has no column for {' and '.join(missing)}; it has "
      f"{', '.join(header)[:300]}. Name them, e.g. --columns=n=PARAMS,d=TOKENS,loss=L"
    )
  return found
