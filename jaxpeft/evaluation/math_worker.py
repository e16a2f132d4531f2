"""Compares answers of mathematics in a process of its own, which may be killed.

Run by `equivalence`, never imported by it: sympy may take for ever, and all memory, for
an expression such as 9**9**9. Reads requests and writes replies, a line of JSON each:
  {"text", "gold": text or null} -> {"answer": canonical text or null, "same": bool}
"""

import json
import os
import resource
import sys
from typing import Any

_MEMORY = 4 * 2**30  # bytes of address space
_LONGEST = 300  # characters of a canonical text


def main():
  """Answers requests until the input ends."""
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what a library prints is no reply
  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  import logging

  import math_verify  # pyright: ignore[reportMissingImports]
  import sympy

  logging.disable(logging.CRITICAL)
  config = [
    math_verify.LatexExtractionConfig(boxed_match_priority=0),
    math_verify.ExprExtractionConfig(),
  ]

  def parse(text: str) -> list:
    no_timeout: Any = None  # the process that waits for this one has its own
    return math_verify.parse(text, config, parsing_timeout=no_timeout)

  def canonical(found: list) -> str | None:
    if not found:
      return None
    value = found[0]
    try:
      if isinstance(value, sympy.Basic):
        floats = {x: sympy.Rational(str(x)) for x in value.atoms(sympy.Float)}
        value = value.xreplace(floats).doit()
      return str(value)[:_LONGEST]
    except Exception:
      return str(found[-1])[:_LONGEST]

  def reply(text: str, gold: str | None) -> dict:
    found = parse(text)
    if gold is None:
      return dict(answer=canonical(found), same=False)
    right = parse(f"\\boxed{{{gold}}}")
    same = math_verify.verify(right, found, timeout_seconds=None)
    return dict(answer=None, same=bool(found) and bool(same))

  print("ready", file=out, flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    try:
      result = reply(request["text"], request["gold"])
    except (Exception, MemoryError):
      result = dict(answer=None, same=False)
    print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
  main()
