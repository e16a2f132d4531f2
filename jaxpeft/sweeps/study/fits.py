"""What a study's tables say: the three approaches, and the known entropy as a check.

Approach 1 takes the training curves; approaches 2 and 3 take the ends of runs. Approach
3 estimates E, the loss that no model can beat. Here E is known, so the fit can be
compared with the true value. No study of natural text can do that.
"""

import json
import pathlib

from jaxpeft.errors import InputError
from jaxpeft.scaling import figures, laws, points, report, results


def write(folder: pathlib.Path, entropy: float) -> str:
  """Fits points.csv and curves.csv of a folder; returns the text, see `fits.txt`.

  Writes fits.txt, fits.json, law.json (for `scaling plan --law`) and approach_1.png to
  approach_3.png. An approach that the points do not allow is one line of the text.

  Args:
    folder: where the tables are.
    entropy: of the study's text.
  """
  parts, numbers = [], {}
  for approach in results.APPROACHES:
    data = folder / ("curves.csv" if approach == 1 else "points.csv")
    try:
      found = points.read(data)
      result = results.run(found, approach)
    except InputError as e:
      parts.append(f"Approach {approach} is not possible: {e}")
      continue
    parts.append(report.text(result))
    numbers[f"approach_{approach}"] = report.as_json(result)
    figures.draw(result, found, folder / f"approach_{approach}.png")
    if approach == 3:
      parts.append(floor(result, entropy))
      if result.fitted is not None:
        laws.write(result.fitted, folder / "law.json")
  text = "\n\n".join(parts)
  (folder / "fits.txt").write_text(text + "\n")
  numbers["entropy"] = entropy
  (folder / "fits.json").write_text(json.dumps(numbers, indent=1) + "\n")
  return text


def floor(result: results.Result, entropy: float) -> str:
  """One sentence that compares the fitted E with the entropy of the text."""
  e = next(number for number in result.numbers if number.name == "E")
  said = f"The fitted E is {e.value:.3f}; the entropy of the text is {entropy:.3f}"
  if e.low is None or e.high is None:
    return f"{said}."
  if e.low <= entropy <= e.high:
    return f"{said}, which is in the interval, {e.low:.3f} to {e.high:.3f}."
  return (
    f"{said}, which is not in the interval, {e.low:.3f} to {e.high:.3f}: the law does "
    "not hold as far as the entropy, so do not extrapolate far with it."
  )
