"""Parses collectives and their sizes from compiled HLO.

Collectives are the operations through which the devices of a mesh exchange arrays. The
HLO is XLA's text of the program after partitioning, which every device runs.
"""

import collections
import math
import re
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_LINE = re.compile(r"^\s*(?:ROOT )?%(?P<name>[\w.-]+) = (?P<rest>.*)$")
_OP = re.compile(
  rf"(?P<type>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\((?P<args>.*?)\)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)="
  r"\{?(%[\w.-]+(?:, %[\w.-]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
  """All collectives of one kind and dtype in one run of the program on one device."""

  kind: str  # e.g. all-gather
  dtype: str  # as HLO spells it, e.g. u8, bf16
  count: int  # number of executions
  bytes: int  # sum over executions of max(bytes of operands, bytes of results)


def of(text: str) -> list[Collective]:
  """The collectives of a compiled program, most bytes first.

  A collective in a loop counts once per iteration if the number of iterations is known,
  and otherwise once.

  Args:
    text: the program's HLO, from `compiled.as_text()`.
  """
  computations, entry = _computations(text)
  types = {}
  for lines in computations.values():
    for name, rest in lines:
      types[name] = rest.split(" ", 1)[0] if rest[0] != "(" else _tuple(rest)
  times = _times(computations, entry)
  found, seen = collections.Counter(), set()
  counts = collections.Counter()
  for computation, lines in computations.items():
    for _, rest in lines if times[computation] else ():
      op = _OP.match(rest)
      channel = re.search(r"channel_id=(\d+)", rest)
      if not op or (channel and channel[1] in seen):
        continue  # HLO for TPUs lists a collective twice, with the same channel
      seen.add(channel and channel[1])
      came = _sizes(op["type"])
      went = sum(
        (_sizes(types.get(x, "")) for x in re.findall(r"%([\w.-]+)", op["args"])),
        collections.Counter(),
      )
      if op["start"] and op["kind"] != "all-reduce":
        came = came - went  # the type of a -start holds operands and results
      for dtype in went | came:
        key = op["kind"], dtype
        counts[key] += times[computation]
        found[key] += times[computation] * max(went[dtype], came[dtype])
  ordered = sorted(found, key=lambda key: found[key], reverse=True)
  return [
    Collective(kind, dtype, counts[kind, dtype], found[kind, dtype])
    for kind, dtype in ordered
  ]


def _computations(text: str):
  """({computation: [(instruction, text right of its =)]}, name of the entry)."""
  computations, entry, lines = {}, None, []
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
    if head:
      lines = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif found := _LINE.match(line):
      lines.append((found["name"], found["rest"]))
  return computations, entry


def _times(computations, entry) -> collections.Counter:
  """How often each computation runs in one run of the program."""
  times = collections.Counter()

  def visit(name, count):
    times[name] += count
    for _, rest in computations.get(name, ()):
      called = [x for group in _CALLED.findall(rest) for x in group.split(", ")]
      repeat = _trips(rest, computations) if " while(" in rest else 1
      for x in called:
        visit(x[1:], count * repeat)

  visit(entry, 1)
  return times


def _trips(loop: str, computations) -> int:
  """Iterations of a loop: XLA's count, or the one limit in its condition, or 1."""
  reported = _TRIPS.search(loop)
  if reported:
    return int(reported[1])
  condition = re.search(r"condition=%([\w.-]+)", loop)
  lines = " ".join(rest for _, rest in computations.get(condition and condition[1], ()))
  limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", lines)
  return int(limits[0]) if len(limits) == 1 and "direction=LT" in lines else 1


def _tuple(rest: str) -> str:
  """The tuple type with which `rest` begins, up to its closing parenthesis."""
  depth = 0
  for i, c in enumerate(rest):
    depth += (c == "(") - (c == ")")
    if not depth:
      return rest[: i + 1]
  return rest


def _sizes(type_: str) -> collections.Counter:
  """{dtype: bytes} of all arrays in an HLO type."""
  sizes = collections.Counter()
  for dtype, bits, dims in _ARRAY.findall(type_):
    numbers = math.prod(int(n) for n in dims.split(",") if n)
    sizes[dtype] += math.ceil(numbers * int(bits or 8) / 8)
  return sizes
