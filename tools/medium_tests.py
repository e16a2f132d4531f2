"""Lists the tests that the fast tier leaves out, from a log of durations.

  pytest --durations=0 > durations.log; python tools/medium_tests.py durations.log

Writes tests/medium.txt: the test functions that took over LIMIT seconds, summed over
their parameters. `pytest -m fast` runs the others.
"""

import collections
import pathlib
import re
import sys

LIMIT = 3.0  # seconds
FILE = pathlib.Path(__file__).parents[1] / "tests" / "medium.txt"


def main(log: str):
  """Writes the list."""
  seconds = collections.Counter()
  for line in pathlib.Path(log).read_text().splitlines():
    found = re.match(r"\s*([\d.]+)s (?:call|setup)\s+tests/(\S+?\.py::\w+)", line)
    if found:
      seconds[found[2]] += float(found[1])
  slow = sorted(name for name, total in seconds.items() if total > LIMIT)
  FILE.write_text("".join(f"{name}\n" for name in slow))
  print(f"{len(slow)} of {len(seconds)} test functions take more than {LIMIT} s")


if __name__ == "__main__":
  main(sys.argv[1])
