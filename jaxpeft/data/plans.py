"""Rows of NATURAL PLAN [Zheng et al. 2024, arXiv 2406.04520] and of MATH, as texts.

Of NATURAL PLAN, the prompt is `prompt_0shot` and the completion `golden_plan`: a text,
or a list of the sentences of a plan of meetings. MATH is worded as
lm-evaluation-harness words it (task minerva_math).
"""

from jaxpeft.errors import InputError

FORMS = {
  "natural plan": ("prompt_0shot", "golden_plan"),
  "problem/solution": ("problem", "solution"),
}


def checked(row: dict, form: str, place: str) -> tuple[str, str]:
  """(prompt, completion) of a row of one of `FORMS`.

  Raises:
    InputError: a field has a wrong type.
  """
  first, second = (row[field] for field in FORMS[form])
  listed = form == "natural plan" and isinstance(second, list)
  if not isinstance(first, str) or not isinstance(second, list if listed else str):
    raise InputError(f"{place}: {' and '.join(map(repr, FORMS[form]))} must be texts")
  if listed and not all(isinstance(x, str) for x in second):
    raise InputError(f"{place}: `golden_plan` must be a text, or a list of sentences")
  return split(row, form)


def split(row: dict, form: str) -> tuple[str, str]:
  """(prompt, completion) of a checked row: the completion follows without a gap."""
  first, second = (row[field] for field in FORMS[form])
  if form == "problem/solution":
    return f"Problem:\n{first}\n\nSolution:", f" {second}"
  plan = f"SOLUTION: {' '.join(second)}" if isinstance(second, list) else second
  return first, plan if first[-1:].isspace() else f"\n\n{plan}"
