"""Random input of six kinds is used or refused in one line, in bounded time and memory.

The default tier draws the same few inputs each time. `pytest -m exhaustive tests/fuzz`
draws 100,000 others and prints what was accepted; JAXPEFT_FUZZ changes their number.
"""

import collections
import os

import hypothesis
import pytest

from tests.support import fuzz

# How many inputs of each target are drawn in the default tier, and of 100 in the long
# one. Templates may use all the steps that they are given, and so take the longest.
_QUICK = {"config.json": 100, "tokenizer": 60, "template": 30, "jsonl": 100}
_QUICK |= {"overrides": 60, "adapter": 40}
_SHARE = {"config.json": 40, "jsonl": 25, "tokenizer": 15, "overrides": 10}
_SHARE |= {"adapter": 7, "template": 3}
_ANY: list = list(hypothesis.HealthCheck)


def run(name: str, **settings) -> collections.Counter:
  """Counts of accepted and refused inputs of a target."""
  target, strategy = fuzz.TARGETS[name]
  counts = collections.Counter()

  @hypothesis.settings(
    deadline=None,
    database=None,
    suppress_health_check=_ANY,
    **settings,
  )
  @hypothesis.given(strategy)
  def check(value):
    counts[fuzz.judge(target, value)] += 1

  check()
  return counts


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_random_input_is_used_or_refused_in_one_line(name):
  counts = run(name, max_examples=_QUICK[name], derandomize=True)
  assert counts[True], "nothing was accepted: the inputs are too wild to test anything"
  assert counts[False], "nothing was refused: the inputs are too tame to test anything"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_hundred_thousand_inputs(name, capsys):
  total = int(os.environ.get("JAXPEFT_FUZZ", "100000"))
  counts = run(name, max_examples=total * _SHARE[name] // 100)
  with capsys.disabled():
    print(f"\n{name}: {counts[True]} accepted, {counts[False]} refused")


def test_an_adapter_s_every_byte_counts():
  """One flipped bit anywhere in its files is refused, or changes nothing."""
  files, _ = fuzz.adapter_files()
  for name, data in files.items():
    for place in range(0, len(data), 7):
      flipped = bytearray(data)
      flipped[place] ^= 1 << place % 8
      accepted = fuzz.judge(fuzz.open_adapter, (files | {name: bytes(flipped)}, False))
      assert name == "adapter.json" or not accepted, place
