"""Laws with their uncertainty, and JSON files of them.

A file is one object: {"law": "parametric", "A": ..., "B": ..., "E": ..., "alpha": ...,
"beta": ...}, with the numbers of the law by their names. The names of numbers of a law
inside a law begin with its field, as in "law.A". Optional are

  source      where the numbers are from, one line
  counts      what N counts: "all" or "without embeddings"
  span        {"n": [low, high], "d": ..., "c": ...}: the data that were fitted
  samples     {"A": [...], ...}: the law's numbers in each sample of a bootstrap
  covariance  [[...], ...]: of the numbers in their order; the logarithm stands for
              each number that is positive by its nature: A, B, E and other scales
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from jaxpeft.errors import InputError, unknown
from jaxpeft.scaling.laws import chinchilla, embedding, finetuning, kaplan, power
from jaxpeft.scaling.laws import width_depth as shapes

KINDS: dict[str, type] = {
  "parametric": chinchilla.Parametric,
  "without-embedding": embedding.WithoutEmbedding,
  "allocation": power.Allocation,
  "power": power.Power,
  "data-limited": kaplan.DataLimited,
  "steps": kaplan.Steps,
  "width-depth": shapes.WidthDepth,
  "multiplicative": finetuning.Multiplicative,
}
COUNTS = ("all", "without embeddings")
_INSIDE = {"law": chinchilla.Parametric, "best": power.Power}
_INSIDE |= {"batch": kaplan.CriticalBatch}
_LOGS = {"A", "B", "E", "N_c", "D_c", "S_c", "B_star", "gamma", "scale"}
_SIGNED = dict.fromkeys(KINDS.values(), frozenset())  # numbers that may be negative
_SIGNED[shapes.WidthDepth] = frozenset("c_width c_depth c_tokens c_n e".split())
_SIGNED[finetuning.Multiplicative] = frozenset({"alpha"})
_BYTES, _SAMPLES, _NUMBER = 50_000_000, 1_000_000, 1e300


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
  """A law, where it is from, and how far its numbers can be trusted.

  law: the law.
  source: one line.
  counts: what N counts, one of COUNTS.
  span: {"n", "d" or "c": (least, most)} of the data that were fitted.
  samples: {name: float64[S]} of a bootstrap, or None.
  covariance: float64[P, P], see above, or None.
  """

  law: Any
  source: str = ""
  counts: str = "all"
  span: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  samples: dict[str, np.ndarray] | None = None
  covariance: np.ndarray | None = None

  def draws(self, count: int = 4_000, seed: int = 0) -> Any:
    """A law whose numbers are arrays, float64[S]; None if nothing says how they vary.

    The samples of a bootstrap if there are any, and otherwise `count` draws from the
    normal distribution with the covariance. Left out are those in which a number
    that must be positive is not.

    Raises:
      InputError: fewer than two are left.
    """
    names = list(numbers(self.law))
    if self.samples is not None:
      drawn = dict(self.samples)
    elif self.covariance is not None:
      logs = np.asarray([_log(name) for name in names])
      own = np.asarray(list(numbers(self.law).values()), np.float64)
      centre = np.where(logs, np.log(np.where(logs, own, 1.0)), own)
      rng = np.random.default_rng(seed)
      # the eigenvectors, as a covariance may be singular
      values, vectors = np.linalg.eigh(self.covariance)
      steps = rng.standard_normal((count, len(own))) * np.sqrt(values.clip(0))
      found = centre + steps @ vectors.T
      found = np.where(logs, np.exp(np.minimum(found, 690.0)), found)
      drawn = dict(zip(names, found.T, strict=True))
    else:
      return None
    kind = type(self.law)
    good = np.logical_and.reduce([_valid(kind, name, drawn[name]) for name in names])
    if np.count_nonzero(good) < 2:
      raise InputError("samples or covariance of the law give no law; fit it again")
    return rebuilt(kind, {name: drawn[name][good] for name in names})


def numbers(law) -> dict[str, float]:
  """{name: number} of a law, those of a law inside it as "field.name"."""
  found = {}
  for field in dataclasses.fields(law):
    value = getattr(law, field.name)
    if dataclasses.is_dataclass(value):
      found |= {f"{field.name}.{k}": v for k, v in numbers(value).items()}
    elif value is not None and not (field.name == "c_n" and np.isneginf(value).all()):
      found[field.name] = value
  if "c_n" not in found:
    found.pop("a_n", None)
  return found


def rebuilt(kind: type, given: dict[str, Any]):
  """The law of these numbers; the opposite of `numbers`."""
  own = {name: value for name, value in given.items() if "." not in name}
  for field in {name.split(".")[0] for name in given if "." in name}:
    start = f"{field}."
    inner = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
    own[field] = rebuilt(_INSIDE[field], inner)
  return kind(**own)


def to_json(fitted: Fitted) -> dict:
  """The object that a file holds."""
  kinds = {kind: name for name, kind in KINDS.items()}
  found: dict[str, Any] = {"law": kinds[type(fitted.law)]}
  found |= {name: float(value) for name, value in numbers(fitted.law).items()}
  found |= {"counts": fitted.counts}
  if fitted.source:
    found["source"] = fitted.source
  if fitted.span:
    found["span"] = {k: [float(x) for x in v] for k, v in fitted.span.items()}
  if fitted.samples is not None:
    found["samples"] = {k: np.asarray(v).tolist() for k, v in fitted.samples.items()}
  if fitted.covariance is not None:
    found["covariance"] = np.asarray(fitted.covariance).tolist()
  return found


def write(fitted: Fitted, path):
  """Writes a file that `read` reads."""
  pathlib.Path(path).write_text(json.dumps(to_json(fitted), allow_nan=False) + "\n")


def read(path) -> Fitted:
  """The law of a file.

  Raises:
    InputError: the file is no law; the message names the key.
  """
  path = pathlib.Path(path)
  try:
    large = path.stat().st_size > _BYTES
    found = None if large else json.loads(path.read_text(encoding="utf-8"))
  except OSError as e:
    raise InputError(f"the law {path} cannot be read: {e.strerror or e}") from e
  except (ValueError, RecursionError) as e:
    raise InputError(f"{path} is no JSON: {e}") from e
  if large:
    raise InputError(f"{path} has more than {_BYTES:,} bytes, too many for a law")
  return from_json(found, str(path))


def from_json(found, place: str = "law") -> Fitted:
  """The law of an object; `place` begins the messages.

  Raises:
    InputError: a key is missing, unknown, or its value is of the wrong kind.
  """
  if isinstance(found, dict) and isinstance(found.get("law"), dict):
    found = found["law"]  # what `scaling fit --result` writes
  if not isinstance(found, dict) or not isinstance(found.get("law"), str):
    raise InputError(
      f'{place} has no "law", e.g. {{"law": "parametric", "A": 482, ...}}'
    )
  if found["law"] not in KINDS:
    raise unknown(f"law in {place}:", found["law"], KINDS)
  kind = KINDS[found["law"]]
  optional = {"law", "source", "counts", "span", "samples", "covariance"}
  given = {name: value for name, value in found.items() if name not in optional}
  required, known = _names(kind)
  for name in given:
    if name not in known:
      raise unknown(f"key in {place}:", name, known | optional)
  inner = {name.split(".")[0] for name in given if "." in name}
  required |= {x for x in known if "." in x and x.split(".")[0] in inner}
  if missing := sorted(required - set(given)):
    raise InputError(f"{place} has no {missing[0]}; a {found['law']} law needs it")
  if ("c_n" in given) != ("a_n" in given):
    raise InputError(f"{place} needs both c_n and a_n, or neither")
  values = {name: _number(value, f"{place}: {name}") for name, value in given.items()}
  for name, value in values.items():
    if not _valid(kind, name, value):
      raise InputError(f"{place}: {name} is {value:g}, but must be positive")
    if kind is power.Allocation and name == "a" and value >= 1:
      raise InputError(f"{place}: a is {value:g}, but must be below 1")
  counts = found.get("counts", "all")
  if counts not in COUNTS:
    raise unknown(f"counts in {place}:", counts, COUNTS)
  law = rebuilt(kind, values)
  order = list(numbers(law))
  return Fitted(
    law, _line(found.get("source", ""), place), counts, _span(found, place),
    _samples(found.get("samples"), order, place),
    _covariance(found.get("covariance"), order, place),
  )  # fmt: skip


def _names(kind: type) -> tuple[set[str], set[str]]:
  """(names that a law must have, all that it may have)."""
  must, may = set(), set()
  for field in dataclasses.fields(kind):
    if field.name in _INSIDE:
      inner = {f"{field.name}.{x}" for x in _names(_INSIDE[field.name])[1]}
      must |= inner if field.default is dataclasses.MISSING else set()
      may |= inner
    else:
      must |= {field.name} if field.default is dataclasses.MISSING else set()
      may.add(field.name)
  return must, may


def _valid(kind: type, name: str, value):
  """Whether a law may have this number; for arrays, where."""
  if name in _SIGNED[kind]:
    return np.isfinite(value)
  return np.isfinite(value) & ((value >= 0) if name == "E" else (value > 0))


def _log(name: str) -> bool:
  return name.rpartition(".")[2] in _LOGS


def _number(value, place: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"{place} is {str(value)[:60]!r}, no number")
  if (isinstance(value, int) and abs(value) > _NUMBER) or not math.isfinite(value):
    raise InputError(f"{place} is too large or no number")
  return float(value)


def _line(value, place: str) -> str:
  if not isinstance(value, str):
    raise InputError(f"{place}: source is {str(value)[:60]!r}, no text")
  return " ".join(value.split())[:300]


def _span(found: dict, place: str) -> dict[str, tuple[float, float]]:
  span = found.get("span", {})
  good = isinstance(span, dict) and all(
    k in ("n", "d", "c") and isinstance(v, list) and len(v) == 2
    for k, v in span.items()
  )
  if not good:
    raise InputError(
      f'{place}: span must be like {{"n": [1e6, 1e9], "d": [1e8, 1e11]}}'
    )
  ends = {
    k: tuple(_number(x, f"{place}: span of {k}") for x in v) for k, v in span.items()
  }
  for k, (low, high) in ends.items():
    if not 0 < low <= high:
      raise InputError(f"{place}: span of {k} is {low:g} to {high:g}")
  return ends  # type: ignore[return-value]


def _samples(found, order: list[str], place: str) -> dict[str, np.ndarray] | None:
  if found is None:
    return None
  if not isinstance(found, dict) or set(found) != set(order):
    raise InputError(f"{place}: samples need lists of {', '.join(order)}")
  arrays = {k: _array(found[k], f"{place}: samples of {k}", 1) for k in order}
  sizes = {len(x) for x in arrays.values()}
  if len(sizes) > 1 or not 2 <= sizes.pop() <= _SAMPLES:
    raise InputError(f"{place}: samples must be lists of one length, 2 to {_SAMPLES:,}")
  return arrays


def _covariance(found, order: list[str], place: str) -> np.ndarray | None:
  if found is None:
    return None
  array = _array(found, f"{place}: covariance", 2)
  size = len(order)
  if array.shape != (size, size) or not np.allclose(array, array.T, rtol=1e-6):
    raise InputError(f"{place}: covariance must be symmetric, {size} x {size} numbers")
  if np.linalg.eigvalsh(array)[0] < -1e-6 * max(1e-12, np.trace(array)):
    raise InputError(f"{place}: covariance has a negative variance")
  return array


def _array(found, place: str, dims: int) -> np.ndarray:
  try:
    array = np.asarray(found)
    good = array.ndim == dims and array.dtype.kind in "if" and np.isfinite(array).all()
  except (ValueError, OverflowError, RecursionError):  # rows of different lengths
    good, array = False, np.zeros(0)
  if not good:
    raise InputError(f"{place} must be {('a list', 'a table')[dims - 1]} of numbers")
  return array.astype(np.float64)
