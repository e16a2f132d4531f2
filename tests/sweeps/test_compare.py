"""python -m jaxpeft compare."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jaxpeft import config as configs
from jaxpeft import config_file
from jaxpeft.errors import InputError
from jaxpeft.sweeps import compare, sweep
from jaxpeft.training import workdir

ROOT = pathlib.Path(__file__).parents[2]
SHORT = [
  "--config.train.steps=2",
  "--config.eval.limit=8",
  "--config.eval.loss_limit=16",
  "--config.eval.max_new_tokens=4",
  "--config.eval.batch_size=8",
]


def run(out, *more):
  """The command, as a user runs it."""
  configs = f"{ROOT}/configs/lora.py,{ROOT}/configs/ia3.py"
  command = [sys.executable, "-m", "jaxpeft", "compare", f"--configs={configs}"]
  command += ["--seeds=2", "--times=1,2", f"--out={out}", *SHORT, *more]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run(command, capture_output=True, text=True, cwd=out, env=env)


@pytest.mark.slow
def test_a_comparison_is_complete_and_goes_on_where_it_was(tmp_path):
  first = run(tmp_path)
  assert first.returncode == 0, first.stderr[-2000:]
  raw = [
    json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()
  ]
  assert len(raw) == 2 * (2 + 1)
  for name in ("lora", "ia3"):
    own = [r for r in raw if r["name"] == name]
    best = min((r for r in own if r["seed"] == 0), key=lambda r: r["eval_loss"])
    assert {r["lr"] for r in own if r["seed"] == 1} == {best["lr"]}
    assert f"| {name} | {best['trainable_parameters']:,} |" in first.stdout
  assert (tmp_path / "pareto.png").stat().st_size > 5000
  before = (tmp_path / "runs.jsonl").read_text()
  again = run(tmp_path)
  assert again.returncode == 0
  assert again.stdout == first.stdout
  assert (tmp_path / "runs.jsonl").read_text() == before
  other = run(tmp_path, "--config.train.batch_size=4")
  assert other.returncode == 2
  assert "another config" in other.stderr


def test_summary_is_the_mean_with_the_interval_of_the_problems():
  final = dict(
    trainable_parameters=10,
    adapter_bytes=40,
    peak_memory_bytes=2**20,
    problems=200,
    tokens_per_s=100.0,
    lr=0.1,
  )
  runs = [final | dict(accuracy=a) for a in (0.5, 0.6, 0.7)]
  row = compare._summary("x", runs, 3.0, [0.3, 1, 3])
  assert row["accuracy"] == pytest.approx(0.6)
  assert row["range"] == (0.5, 0.7)
  assert row["edge"]
  # statsmodels' proportion_confint(120, 200, method="wilson")
  assert row["interval"] == pytest.approx((0.53085, 0.66541), abs=1e-4)
  assert "60.0% | 53.1% to 66.5% | 50.0% to 70.0%" in compare.table([row])


def test_a_learning_rate_that_diverges_is_the_worst_of_the_grid(tmp_path, monkeypatch):
  monkeypatch.setattr(sweep, "TRAIN", tmp_path / "train.py")
  # A stand-in for train.py: diverges at the largest learning rate.
  (tmp_path / "train.py").write_text("""
import json, pathlib, sys
args = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(args["workdir"]); out.mkdir(parents=True, exist_ok=True)
lr = float(args["config.optim.lr"])
line = dict(step=1, not_finite=0) if lr > 0.05 else dict(
  step=2, final=True, accuracy=0.5, problems=8, eval_loss=lr, adapter_bytes=4,
  trainable_parameters=1, peak_memory_bytes=1)
(out / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
sys.exit(2 if lr > 0.05 else 0)
""")
  config = str(ROOT / "configs" / "lora.py")  # its own lr is 1e-2
  text = compare.compare([config], 2, [1.0, 10.0], tmp_path / "out", [])
  assert "| lora | 1 | 50.0% |" in text
  with pytest.raises(InputError, match="diverged at every"):
    compare.compare([config], 1, [10.0], tmp_path / "two", [])


TWO = """
from jaxpeft import config
def get_config(method):
  c = config.base()
  c.adapt.main = dict(name=method, match="layers_.*/(attn|mlp)/.*")
  return c
"""


def test_two_methods_of_one_file_are_two_runs_with_two_names(tmp_path, monkeypatch):
  monkeypatch.setattr(sweep, "TRAIN", tmp_path / "train.py")
  # A stand-in for train.py: the accuracy says which method it was given.
  (tmp_path / "train.py").write_text("""
import json, pathlib, sys
args = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(args["workdir"]); out.mkdir(parents=True, exist_ok=True)
line = dict(step=2, final=True, accuracy=0.25 if "IA3" in args["config"] else 0.75,
  problems=8, eval_loss=1.0, adapter_bytes=4, trainable_parameters=1,
  peak_memory_bytes=1)
(out / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
""")
  (tmp_path / "two.py").write_text(TWO)
  configs = [f"{tmp_path}/two.py:LoRA", f"{tmp_path}/two.py:IA3"]
  text = compare.compare(configs, 1, [1.0], tmp_path / "out", [])
  assert "| two:LoRA | 1 | 75.0% |" in text
  assert "| two:IA3 | 1 | 25.0% |" in text
  runs = [json.loads(x) for x in (tmp_path / "out/runs.jsonl").read_text().splitlines()]
  folders = [pathlib.Path(run["workdir"]).parent.name for run in runs]
  assert folders == ["two_LoRA", "two_IA3"]


def test_names_are_short_and_distinct():
  names = config_file.names
  assert names(["configs/lora.py"]) == ["lora"]
  assert names(["topics.py:lora", "topics.py:svft"]) == ["topics:lora", "topics:svft"]
  assert names(["a/lora.py", "b/lora.py", "b/svf.py"]) == ["a/lora", "b/lora", "svf"]
  assert names(["x/a/l.py", "y/a/l.py"]) == ["x/a/l", "y/a/l"]
  assert names(["../l.py", "l.py"])[0] == f"{pathlib.Path.cwd().parent.name}/l"
  assert names(["l.py", "l.py:x"]) == ["l", "l:x"]
  assert config_file.folder("a/topics:lr=1 x") == "a/topics_lr=1_x"
  # Names that would give the same folder get different ones.
  assert names(["a/l.py:x y", "b/l.py:x_y"]) == ["a/l:x y", "b/l:x_y"]
  with pytest.raises(InputError, match="there twice"):
    names(["l.py:x y", "l.py:x_y"])
  with pytest.raises(InputError, match="share the directory l_x"):
    names(["l.py:x", "l_x.py"])


def test_an_old_run_goes_on_where_it_is(tmp_path):
  c = config_file.load(str(ROOT / "configs" / "lora.py"), [])
  old, new = tmp_path / "two", tmp_path / "two_x"
  assert workdir.default(new, old, c) == new
  old.mkdir()
  there = configs.to_json(c)
  del there["eval"]["extract"]  # it is too old to have it
  (old / "config.json").write_text(json.dumps(there))
  assert workdir.default(new, old, c) == old
  there["optim"]["lr"] = 5.0
  (old / "config.json").write_text(json.dumps(there))
  assert workdir.default(new, old, c) == new
  (old / "config.json").write_text("{")
  assert workdir.default(new, old, c) == new


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_run_saves_before_a_comparison_ends(number, tmp_path):
  # A stand-in for train.py: asked to end, it takes a second to save.
  (tmp_path / "train.py").write_text("""
import pathlib, signal, time
stop = []
for number in (signal.SIGTERM, signal.SIGINT):
  signal.signal(number, lambda *_: stop.append(1))
here = pathlib.Path(__file__).parent
(here / "started").touch()
while not stop:
  time.sleep(0.05)
time.sleep(1)
(here / "saved").touch()
raise SystemExit(143)
""")
  (tmp_path / "main.py").write_text(f"""
import pathlib, signal
from jaxpeft import cli
from jaxpeft.sweeps import compare, sweep
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
sweep.TRAIN = pathlib.Path({str(tmp_path / "train.py")!r})
with cli.one_clear_line():
  compare.compare([{str(ROOT / "configs" / "lora.py")!r}], 1, [1.0], "out", [])
""")
  process = subprocess.Popen(
    [sys.executable, "main.py"],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stderr=subprocess.PIPE,
    text=True,
  )
  while not (tmp_path / "started").exists():
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.send_signal(number)
  _, said = process.communicate(timeout=300)
  assert (tmp_path / "saved").exists()
  assert process.returncode == (130 if number == signal.SIGINT else 2), said
  assert "run the same command to go on" in said.lower()


@pytest.mark.parametrize(
  ("configs", "seeds", "times", "message"),
  [
    (["none.py"], 1, [1.0], "cannot read the config"),
    (["a/x.py", "./a/x.py"], 1, [1.0], "config x is there twice"),
    (["a/x.py:t", "a/x.py:t"], 1, [1.0], "config x:t is there twice"),
    (["configs/lora.py"], 0, [1.0], "must be positive"),
    (["configs/lora.py"], 1, [0.0], "must be positive"),
    (["configs/lora.py"], 1, [float("nan")], "must be positive"),
    ([], 1, [1.0], "names no file"),
  ],
)
def test_bad_comparisons_are_refused(configs, seeds, times, message, tmp_path):
  with pytest.raises(InputError, match=message):
    compare.compare(configs, seeds, times, tmp_path, [])


def test_what_has_no_accuracy_is_refused_before_it_is_trained(tmp_path):
  extra = ["--config.eval.task="]
  with pytest.raises(InputError, match="no accuracy to compare"):
    compare.compare(["configs/lora.py"], 1, [1.0], tmp_path, extra)
