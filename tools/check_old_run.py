"""Checks that runs of an older version resume, evaluate and export as they did there.

  git worktree add ../old 4bb6cab
  python tools/check_old_run.py --old=../old --out=../old-runs

Trains five short runs with the older checkout, unless OUT holds them, evaluates and
exports them with it, and does the same with this tree. Evaluations must be equal,
exports equal byte for byte, and a run that is set back to step 20 and resumed here must
end with the same metrics and adapter.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ("lora", "svft_banded", "qlora", "lora_ga", "qpissa")
SHORT = """--config.train.steps=30 --config.train.save_every=10
--config.train.eval_every=10
  --config.train.batch_size=4 --config.train.log_every=5 --config.eval.limit=20
  --config.eval.batch_size=20 --config.eval.loss_limit=16""".split()
MEASURED = (  # differ from run to run
  "wall_s",
  "tokens_per_s",
  "peak_memory_bytes",
  "peak_memory_is",
  "process_memory_bytes",
  "time",
  "elapsed_s",
)
INTERVAL = "accuracy_ci95"  # now from SciPy, whose last digits differ


def run(code: pathlib.Path, *words):
  """Runs a script of a checkout."""
  path = os.pathsep.join([str(code), str(code / "kernels")])
  command = [sys.executable, *map(str, words)]
  done = subprocess.run(
    command, cwd=code, env=os.environ | dict(PYTHONPATH=path), capture_output=True
  )
  if done.returncode:
    sys.exit(f"{' '.join(command)} failed:\n{done.stderr.decode()[-2000:]}")


def use(code: pathlib.Path, run_dir: pathlib.Path, out: pathlib.Path):
  """Evaluates and exports a run with a checkout, into OUT."""
  export = ("-m", "jaxpeft", "export", f"--ckpt={run_dir}")
  run(code, "eval.py", f"--ckpt={run_dir}", f"--out={out}.json")
  run(code, *export, f"--out={out}-hf")
  run(
    code, *export, "--format=peft", "--rank=8", "--tolerance=100", f"--out={out}-peft"
  )


def metrics(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics file without what is measured, in one order of keys."""
  out = (*MEASURED, INTERVAL)
  lines = map(json.loads, path.read_text().splitlines())
  return [{k: x for k, x in sorted(line.items()) if k not in out} for line in lines]


def report(path: pathlib.Path) -> dict:
  """What eval.py wrote, without the interval and what only newer versions write."""
  found = {k: x for k, x in json.loads(path.read_text()).items() if k != INTERVAL}
  names = ("prompt", "text", "correct")
  answers = [{k: x[k] for k in names} for x in found["answers"]]
  return found | dict(answers=answers)


def set_back(run_dir: pathlib.Path, to: pathlib.Path):
  """A copy of a run as if it had been killed after step 20."""
  shutil.copytree(run_dir, to)
  shutil.rmtree(to / "adapter")
  shutil.rmtree(to / "checkpoints" / "30")
  lines = (to / "metrics.jsonl").read_text().splitlines(keepends=True)
  kept = [line for line in lines if json.loads(line)["step"] <= 20]
  (to / "metrics.jsonl").write_text("".join(kept))


def same_files(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether two directories hold the same files."""
  names = [{x.name for x in folder.iterdir()} for folder in (a, b)]
  return names[0] == names[1] and all(
    (a / name).read_bytes() == (b / name).read_bytes() for name in names[0]
  )


def main():
  """Makes the runs if they are missing, and compares."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--old", required=True, type=pathlib.Path)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args = parser.parse_args()
  old, out, wrong = args.old.resolve(), args.out.resolve(), []
  out.mkdir(parents=True, exist_ok=True)
  for name in CONFIGS:
    if not (out / name / "adapter").exists():
      config = f"--config=configs/{name}.py"
      run(old, "train.py", config, f"--workdir={out / name}", *SHORT)
    if not (out / f"{name}-peft").exists():
      use(old, out / name, out / name)
    with tempfile.TemporaryDirectory() as tmp:
      here = pathlib.Path(tmp) / name
      use(ROOT, out / name, here)
      reports = [report(pathlib.Path(f"{p}.json")) for p in (out / name, here)]
      checks = dict(
        evaluation=reports[0] == reports[1],
        hf=same_files(out / f"{name}-hf", pathlib.Path(f"{here}-hf")),
        peft=same_files(out / f"{name}-peft", pathlib.Path(f"{here}-peft")),
      )
      set_back(out / name, here)
      config = f"--config=configs/{name}.py"
      run(ROOT, "train.py", config, f"--workdir={here}", *SHORT)
      files = (p / "metrics.jsonl" for p in (out / name, here))
      checks["resumed metrics"] = len({json.dumps(metrics(f)) for f in files}) == 1
      checks["resumed adapter"] = same_files(out / name / "adapter", here / "adapter")
    print(name, checks, flush=True)
    wrong += [f"{name}: {what}" for what, good in checks.items() if not good]
  sys.exit(f"differs: {'; '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
  main()
