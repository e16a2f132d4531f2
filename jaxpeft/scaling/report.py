"""A fit's result as text for people, and as JSON."""

import dataclasses

from jaxpeft import plotting
from jaxpeft.scaling import laws
from jaxpeft.scaling.results import Number, Result


def text(result: Result, level: float = 0.95) -> str:
  """Tables of numbers and budgets, sentences, and warnings."""
  lines = [result.title, ""]
  interval = any(x.low is not None for x in result.numbers)
  head = ["", "value"] + (
    ["std. error", f"{100 * level:g} % interval"] if interval else []
  )
  lines += table([head, *(_row(x, interval) for x in result.numbers)])
  lines += ["", *(f"{one}." for one in result.said)]
  if result.budgets:
    rows = [["FLOPs", "N", "D", "tokens per parameter"]]
    for b in result.budgets:
      rows.append(
        [
          f"{b.c:.3g}", _with(plotting.short(b.n), b.n_ends), plotting.short(b.d),
          _with(f"{b.ratio:.3g}", b.ratio_ends),
        ]
      )  # fmt: skip
    lines += ["", "The best split of a budget:", *table(rows)]
  if any(x.name == "a" for x in result.numbers):
    lines += ["", meaning(result)]
  lines += ["", *(f"warning: {one}." for one in result.warnings)]
  if not result.warnings:
    lines += ["No warnings: the search agrees, and no point decides the fit alone."]
  return "\n".join(lines)


def meaning(result: Result) -> str:
  """One or two sentences: what the exponent says."""
  a = next(x for x in result.numbers if x.name == "a")
  first = (
    f"With 10 times the FLOPs, train a model {10**a.value:.2g} times as large on "
    f"{10 ** (1 - a.value):.2g} times the tokens."
  )
  if a.low is None or a.high is None:
    return first
  inside = [
    name for name, x in (("Kaplan's .73", 0.73), ("Chinchilla's .50", 0.50))
    if a.low <= x <= a.high
  ]  # fmt: skip
  which = " and ".join(inside) or "neither Kaplan's .73 nor Chinchilla's .50"
  return f"{first}\nThe interval of a, {a.low:.3f} to {a.high:.3f}, holds {which}."


def table(rows: list[list[str]]) -> list[str]:
  """Rows as lines with aligned columns; numbers stand to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.ljust(w) if i == 0 else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("  ".join(cells).rstrip())
  return lines


def _row(x: Number, interval: bool) -> list[str]:
  row = [x.name, f"{x.value:.4g}"]
  if interval:
    row += (
      ["", ""] if x.low is None else [f"{x.error:.3g}", f"{x.low:.4g} to {x.high:.4g}"]
    )
  return row


def _with(value: str, ends) -> str:
  if ends is None:
    return value
  low, high = (plotting.short(x) for x in ends)
  return f"{value} ({low} to {high})"


def as_json(result: Result) -> dict:
  """Everything of the text, and the law as `scaling plan --law` reads it, or None."""
  return {
    "approach": result.approach,
    "title": result.title,
    "numbers": {
      x.name: {k: v for k, v in dataclasses.asdict(x).items() if k != "name"}
      for x in result.numbers
    },
    "budgets": [dataclasses.asdict(b) for b in result.budgets],
    "said": list(result.said),
    "warnings": list(result.warnings),
    "law": None if result.fitted is None else laws.to_json(result.fitted),
  }
