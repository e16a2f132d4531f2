"""Do the tests notice mistakes? Makes them one at a time: python tools/mutants.py

Every mistake of tools/mutant_list.py is made in a copy of the tree. The tests that
should notice it run first; if they pass, the default suite runs (unless --hints). The
results are kept in runs/mutants.json, so that a stopped run goes on; --again forgets
them. A mistake is "killed" if a test fails, and "survived" if all pass.

  --only=WORD      mistakes whose name or file contains the word
  --jobs=N         at a time, each in a copy of its own
  --hints          never the default suite
  --again          forget earlier results of the chosen mistakes
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from mutant_list import MUTANTS, Mutant  # noqa: E402

RESULTS = ROOT / "runs" / "mutants.json"
_COPIED = ("jaxpeft", "kernels", "tests", "configs", "tools", "benchmarks", "notebooks")
_COPIED += ("docs", "launch", "train.py", "eval.py", "pyproject.toml", "README.md")
_COPIED += ("CONTRIBUTING.md", "CHANGELOG.md", "Makefile")
_PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
_HINT_S, _SUITE_S = 1800, 7200  # a mutant that takes longer never ends: it is killed
_lock = threading.Lock()


def place(mutant: Mutant) -> pathlib.PurePath:
  """The file of a mutant, relative to the tree."""
  return pathlib.PurePath(os.path.normpath(f"jaxpeft/{mutant.file}"))


def check(mutant: Mutant) -> str:
  """What is wrong with a row of the list; "" if nothing is."""
  count = (ROOT / place(mutant)).read_text().count(mutant.old)
  if count != 1:
    return f"{mutant.name}: its old text is {count} times in {place(mutant)}"
  if mutant.old == mutant.new:
    return f"{mutant.name} changes nothing"
  words = [word.partition("::")[0] for word in shlex.split(mutant.hint)]
  missing = [w for w in words if w.startswith("tests/") and not (ROOT / w).exists()]
  return f"{mutant.name}: there is no {missing[0]}" if missing else ""


def key(mutant: Mutant) -> str:
  """Under which its result is kept: another text is another mutant."""
  text = "\0".join((mutant.file, mutant.old, mutant.new, mutant.hint))
  return f"{mutant.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def copy(to: pathlib.Path):
  """A copy of what the tests need."""
  for name in _COPIED:
    if (ROOT / name).is_dir():
      ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
      shutil.copytree(ROOT / name, to / name, ignore=ignored)
    elif (ROOT / name).exists():
      shutil.copy2(ROOT / name, to / name)


def passes(tree: pathlib.Path, words: list[str], limit: int) -> bool:
  """Whether tests pass in a tree.

  Raises:
    SystemExit: they cannot be run at all.
  """
  path = os.pathsep.join((str(tree), str(tree / "kernels")))
  env = os.environ | dict(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
  try:
    got = subprocess.run(
      [*_PYTEST, *words], cwd=tree, env=env, timeout=limit,
      capture_output=True, text=True,
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    return False
  if got.returncode > 2:  # 1: a test failed; 2: an import failed
    sys.exit(f"pytest {shlex.join(words)}: {got.stdout[-1500:]}{got.stderr[-500:]}")
  return got.returncode == 0


def judge(mutant: Mutant, tree: pathlib.Path, hints: bool) -> str:
  """Who killed a mutant: "hint" or "suite"; "survived" if nobody did."""
  path = tree / place(mutant)
  good, words = path.read_text(), ["-n", "0", *shlex.split(mutant.hint)]
  try:
    path.write_text(good.replace(mutant.old, mutant.new))
    if not passes(tree, words, _HINT_S):
      return "hint"
    if not hints and not passes(tree, [], _SUITE_S):
      return "suite"
    return "survived"
  finally:
    path.write_text(good)


def main():
  parser = argparse.ArgumentParser(description=__doc__, add_help=True)
  parser.add_argument("--only", default="")
  parser.add_argument("--jobs", type=int, default=1)
  parser.add_argument("--hints", action="store_true")
  parser.add_argument("--again", action="store_true")
  args = parser.parse_args()
  problems = [text for text in map(check, MUTANTS) if text]
  if problems:
    sys.exit("\n".join(problems))
  some = [m for m in MUTANTS if args.only in m.name or args.only in m.file]
  found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  if args.again:
    for mutant in some:
      found.pop(key(mutant), None)
  left = [m for m in some if found.get(key(m), "survived") == "survived"]
  with tempfile.TemporaryDirectory(prefix="mutants-") as tmp:
    trees: queue.Queue[pathlib.Path] = queue.Queue()
    for i in range(args.jobs):
      tree = pathlib.Path(tmp) / str(i)
      tree.mkdir()
      copy(tree)
      trees.put(tree)
    clean: dict[str, bool] = {}

    def one(mutant: Mutant):
      tree = trees.get()
      try:
        if mutant.hint not in clean:  # tests that fail anyway would kill everything
          words = ["-n", "0", *shlex.split(mutant.hint)]
          clean[mutant.hint] = passes(tree, words, _HINT_S)
        good = clean[mutant.hint]
        verdict = judge(mutant, tree, args.hints) if good else "its hint fails anyway"
      finally:
        trees.put(tree)
      with _lock:
        found[key(mutant)] = verdict
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{verdict:<9} {mutant.name}: {mutant.breaks}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
      list(pool.map(one, left))
  verdicts = [found[key(m)] for m in some]
  killed = sum(v in ("hint", "suite") for v in verdicts)
  print(f"{killed} of {len(some)} killed ({killed / max(1, len(some)):.1%})")
  sys.exit(killed < len(some))


if __name__ == "__main__":
  main()
