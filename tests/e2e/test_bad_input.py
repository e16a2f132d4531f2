"""Bad input: one clear line, exit status 2, nothing written."""

import fcntl
import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest
import safetensors.numpy
from absl import app, flags

from jaxpeft import experiment  # noqa: F401  (its libraries declare flags)
from jaxpeft.checkpoints import run_state  # noqa: F401
from jaxpeft.errors import InputError
from jaxpeft.parallel import sharding

ROOT = pathlib.Path(__file__).parents[2]
C = "--config=configs/svft_banded.py"
BAD_ROW = '{"prompt": "a", "completion": "b"}\n{"prompt": '

CASES = {  # what is typed after the script, and what the line must say
  "no config": (["train.py"], "Give --config"),
  "missing config": (["train.py", "--config=configs/nothing.py"], "nothing.py"),
  "wrong argument of a config": (
    ["train.py", "--config=configs/smollm2_lora.py:topic"],
    "unknown data 'topic'. Did you mean 'topics'",
  ),
  "right argument, no data": (
    ["train.py", "--config=configs/smollm2_lora.py:topics"],
    "topics_train.jsonl",
  ),
  "wrong key": (
    ["train.py", C, "--config.optim.lrr=1"],
    "unknown config key 'optim.lrr'. Did you mean 'optim.lr'",
  ),
  "wrong type": (["train.py", C, "--config.train.steps=many"], "many"),
  "no number at all": (
    ["train.py", C, "--config.optim.lr=x"],
    "--config.optim.lr=x: the value must be a number",
  ),
  "neither true nor false": (
    ["train.py", C, "--config.train.keep_best=maybe"],
    "--config.train.keep_best=maybe: the value must be true or false",
  ),
  "wrong flag": (["train.py", C, "--nonsense=1"], "nonsense"),
  "no time at all": (
    ["train.py", C, "--config.processes.heartbeat_s=0"],
    "processes.heartbeat_s 0 is below 1",
  ),
  "stray word": (["train.py", C, "steps=3"], "steps=3"),
  "empty model": (["train.py", C, "--config.model.source="], "model.source"),
  "empty workdir": (["train.py", C, "--workdir="], "--workdir="),
  "no model": (["train.py", C, "--config.model.source=/nowhere"], "/nowhere"),
  "no data, told before a model is read": (
    ["train.py", C, "--config.model.source=/nowhere", "--config.data.train=none.jsonl"],
    "none.jsonl",
  ),
  "offline hub": (["train.py", C, "--config.model.source=org/name"], "org/name"),
  "wrong dtype": (["train.py", C, "--config.model.dtype=float8"], "model.dtype"),
  "wrong shape name": (["train.py", C, "--config.model.source=init:huge"], "huge"),
  "groups": (["train.py", C, "--config.model.groups=(3,2)"], "sum to depth 4"),
  "groups of words": (["train.py", C, "--config.model.groups=abc"], "sum to depth 4"),
  "seed": (["train.py", C, "--config.seed=-1"], "seed -1"),
  "no factors": (["train.py", C, "--config.optim.precondition=scaled_gd"], "low-rank"),
  "noise": (["train.py", C, "--config.train.neftune=-1"], "train.neftune"),
  "no number": (["train.py", C, "--config.train.neftune=nan"], "train.neftune"),
  "no rows": (["train.py", C, "--config.data.limit=0"], "data.limit 0"),
  "before a model is read": (
    ["train.py", C, "--config.model.source=/nowhere", "--config.train.log_every=0"],
    "train.log_every",
  ),
  "export format": (["-m", "jaxpeft", "export", "--ckpt=none", "--out=o"], "none"),
  "remats": (["train.py", C, "--config.model.remat=layer,none"], "model.remat"),
  "remat": (["train.py", C, "--config.model.remat=all"], "model.remat"),
  "no data": (["train.py", C, "--config.data.train=/none.jsonl"], "/none.jsonl"),
  "chat with no run": (["-m", "jaxpeft", "chat", "--ckpt=none"], "none is no run"),
  "chat with no adapter": (
    ["-m", "jaxpeft", "chat", "--model=embedded", "--adapter=a=/nowhere"],
    "there is no directory /nowhere",
  ),
  "chat of a run in another dtype": (
    ["-m", "jaxpeft", "chat", "--ckpt=none", "--dtype=float32"],
    "are for --model",
  ),
  "push of no run": (["-m", "jaxpeft", "push", "--ckpt=none", "--to=a/b"], "is no run"),
  "push to nowhere": (["-m", "jaxpeft", "push", "--ckpt=x", "--to=name"], "--to=name"),
  "a dry run without place": (
    ["-m", "jaxpeft", "push", "--ckpt=x", "--to=a/b", "--dry-run"],
    "--out=DIR",
  ),
  "pull of no name": (["-m", "jaxpeft", "pull", "--from=x", "--out=o"], "--from=x"),
  "pull offline": (["-m", "jaxpeft", "pull", "--from=a/b", "--out=o"], "offline"),
  "tracker": (["train.py", C, "--config.log.tracker=wandbb"], "Did you mean 'wandb'"),
  "broken jsonl": (["train.py", C, "--config.data.train={tmp}/bad.jsonl"], "line 2"),
  "empty data": (["train.py", C, "--config.data.train={tmp}/empty.jsonl"], "no rows"),
  "embedded name": (["train.py", C, "--config.data.train=embedded:x"], "two_step"),
  "nothing supervised": (["train.py", C, "--config.data.max_tokens=8"], "max_tokens"),
  "loss_on": (["train.py", C, "--config.data.loss_on=none"], "data.loss_on"),
  "method": (["train.py", C, "--config.adapt.main.name=LORA"], "Did you mean"),
  "pattern": (["train.py", C, "--config.adapt.main.pattern=band"], "banded"),
  "rank": (
    ["train.py", "--config=configs/lora.py", "--config.adapt.main.rank=500"],
    "rank 500",
  ),
  "no match": (["train.py", C, "--config.adapt.main.match=layer/.*"], "matches none"),
  "two rules": (["train.py", "--config={tmp}/two.py"], "make them disjoint"),
  "adapter option": (["train.py", "--config={tmp}/option.py"], "option of LoRA"),
  "typo in a file": (["train.py", "--config={tmp}/typo.py"], "stepz"),
  "option type": (["train.py", "--config={tmp}/type.py"], "of type int"),
  "option of no method": (
    ["train.py", C, "--config.adapt.main.gates=True"],
    "unknown option of SVFT in config.adapt.main 'gates'. Did you mean 'gate'",
  ),
  "option of another type": (
    ["train.py", C, "--config.adapt.main.rank=all"],
    "adapt.main.rank",
  ),
  "option of no optimizer": (
    ["train.py", C, "--config.optim.options.eps_rot=0.5"],
    "optim.options 'eps_rot'. Did you mean 'eps_root'",
  ),
  "key of a key": (["train.py", C, "--config.optim.lr.peak=1"], "has no keys"),
  "key without a config": (["train.py", "--config.seed=1"], "give --config"),
  "config of an evaluation": (["eval.py", C], "leave out --config"),
  "file with a mistake": (
    ["train.py", "--config={tmp}/mistake.py"],
    "mistake.py, line 5: ZeroDivisionError: division by zero",
  ),
  "file that exits": (["train.py", "--config={tmp}/exit.py"], "line 5: SystemExit: 0"),
  "file that is no Python": (["train.py", "--config={tmp}/syntax.py"], "line 5"),
  "file that returns a number": (
    ["train.py", "--config={tmp}/number.py"],
    "get_config returns int, not a config",
  ),
  "file with a config of its own": (
    ["train.py", "--config={tmp}/own.py"],
    "own.py: unknown config key 'lr'. ",
  ),
  "no steps": (["train.py", C, "--config.train.steps=0"], "train.steps 0"),
  "not a problem": (
    ["train.py", C, "--config.data.eval={tmp}/good.jsonl"],
    "eval.task",
  ),
  "long answers": (["train.py", C, "--config.eval.max_new_tokens=2000"], "positions"),
  "lbfgs": (["train.py", C, "--config.optim.name=lbfgs"], "lbfgs"),
  "no adapter": (["train.py", "--config={tmp}/none.py"], "config.adapt is empty"),
  "optimizer": (["train.py", C, "--config.optim.name=adamm"], "optim.name"),
  "schedule": (["train.py", C, "--config.optim.schedule=step"], "optim.schedule"),
  "warm-up": (["train.py", C, "--config.optim.warmup=100.0"], "optim.warmup"),
  "accumulate": (["train.py", C, "--config.train.accumulate=3"], "accumulate"),
  "temperature": (["train.py", C, "--config.eval.temperature=nan"], "temperature"),
  "task": (["train.py", C, "--config.eval.task=gsm9k"], "gsm8k"),
  "answer": (["train.py", C, "--config.eval.answer=exact"], "eval.answer"),
  "workdir is a file": (["train.py", C, "--workdir={tmp}/bad.jsonl"], "--workdir"),
  "other run": (["train.py", C, "--workdir={tmp}/run"], "another config"),
  "other run, told before a model is read": (
    ["train.py", C, "--workdir={tmp}/run", "--config.model.source=/nowhere"],
    "another config",
  ),
  "a file above workdir": (
    ["train.py", C, "--workdir={tmp}/bad.jsonl/x", "--config.model.source=/nowhere"],
    "bad.jsonl is a file",
  ),
  "unfinished, without held-out data": (
    ["eval.py", "--ckpt={tmp}/bare"],
    "not finished",
  ),
  "dropout, told before a model is read": (
    [
      "train.py",
      "--config=configs/lora.py",
      "--config.model.source=/nowhere",
      "--config.adapt.main.dropout=1.5",
    ],
    "config.adapt.main: dropout 1.5 is not in",
  ),
  "an adapter without a name": (
    ["train.py", C, "--config.adapt.more.rank=3"],
    "config.adapt.more lacks name",
  ),
  "an adapter without match": (
    ["train.py", C, "--config.adapt.more.name=LoRA"],
    "config.adapt.more lacks match: a regex",
  ),
  "rows of another task": (
    ["train.py", C, "--config.data.eval={tmp}/good.jsonl"],
    "set eval.task=exact",
  ),
  "no ckpt": (["eval.py"], "Give --ckpt"),
  "not a run": (["eval.py", "--ckpt={tmp}"], "is no run"),
  "no object": (["eval.py", "--ckpt={tmp}/list"], "holds no JSON object"),
  "no text": (["eval.py", "--ckpt={tmp}/bytes"], "is no run"),
  "types of a run": (["eval.py", "--ckpt={tmp}/types"], "eval is '5'; it must be a"),
  "weights of integers": (
    ["train.py", C, "--config.model.source={tmp}/integers"],
    "holds I16, not one of F64, F32, F16, BF16",
  ),
  "a group that is a number": (
    ["train.py", C, "--config.optim.groups={'a': 1}"],
    "optim.groups",
  ),
  "not finished": (["eval.py", "--ckpt={tmp}/run"], "not finished"),
  "least": (["eval.py", "--ckpt={tmp}/run", "--limit=-1"], "eval.limit -1"),
  "out is a dir": (["eval.py", "--ckpt={tmp}/run", "--out={tmp}"], "is a directory"),
  "export rank": (
    [
      "-m",
      "jaxpeft",
      "export",
      "--ckpt={tmp}/run",
      "--format=peft",
      "--out={tmp}/o",
      "--rank=-3",
    ],
    "--rank -3",
  ),
  "no out dir": (["eval.py", "--ckpt={tmp}/run", "--out={tmp}/x/y.json"], "/x"),
  "corrupt model": (
    ["train.py", C, "--config.model.source={tmp}/model"],
    "cannot read",
  ),
}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
  """A directory of bad things."""
  sys.path.insert(0, str(ROOT))
  from jaxpeft import assets, config

  tmp = tmp_path_factory.mktemp("bad")
  (tmp / "bad.jsonl").write_text(BAD_ROW)
  (tmp / "empty.jsonl").write_text("\n")
  (tmp / "good.jsonl").write_text(BAD_ROW.split("\n")[0] + "\n")
  start = "from jaxpeft import config\n\ndef get_config():\n  c = config.base()\n"
  lora = '  c.adapt.{} = dict(name="LoRA", match="{}"{})\n'
  one = lora.format("a", ".*/attn/.*", "")
  for name, text in {
    "two": one + lora.format("b", ".*/q", ""),
    "option": lora.format("a", ".*/q", ", rang=3"),
    "none": "",
    "typo": one + "  c.train.stepz = 5\n",
    "type": lora.format("a", ".*/q", ', rank="8"'),
    "mistake": "  1 / 0\n",
    "exit": "  raise SystemExit(0)\n",
    "syntax": "  c = (\n",
    "number": "  return 5\n",
    "own": "  return config.config_dict.ConfigDict(dict(lr=1.0))\n",
  }.items():
    (tmp / f"{name}.py").write_text(f"{start}{text}  return c\n")
  (tmp / "run").mkdir()
  c = config.base()
  c.adapt.main = dict(name="LoRA", match=".*/q")
  (tmp / "run" / "config.json").write_text(json.dumps(config.to_json(c)))
  c.data.eval = ""
  (tmp / "bare").mkdir()
  (tmp / "bare" / "config.json").write_text(json.dumps(config.to_json(c)))
  for name, data in (("list", b"[]"), ("bytes", b"\xff\xfe")):
    (tmp / name).mkdir()
    (tmp / name / "config.json").write_bytes(data)
  (tmp / "types").mkdir()
  values = json.loads((tmp / "run" / "config.json").read_text()) | dict(eval=5)
  (tmp / "types" / "config.json").write_text(json.dumps(values))
  shutil.copytree(assets.TINY, tmp / "integers")
  weights = safetensors.numpy.load_file(tmp / "integers" / "model.safetensors")
  weights["model.norm.weight"] = weights["model.norm.weight"].astype("int16")
  safetensors.numpy.save_file(weights, tmp / "integers" / "model.safetensors")
  (tmp / "model").mkdir()
  for file in assets.TINY.iterdir():
    (tmp / "model" / file.name).write_bytes(file.read_bytes()[:100_000])
  return tmp


app.define_help_flags()
_KNOWN_FLAGS = set(flags.FLAGS)  # of the libraries, all of which are imported by now
# Cases that also run as processes of their own, as a user starts them.
SMOKES = ("no config", "wrong key", "corrupt model", "not a run", "export format")


def words_of(name, tmp, tmp_path):
  """What is typed, with a new workdir for training."""
  words = [word.replace("{tmp}", str(tmp)) for word in CASES[name][0]]
  if words[0] == "train.py" and not any("--workdir" in word for word in words):
    words.append(f"--workdir={tmp_path}/new")
  return words


def check(name, status, stderr, tmp_path):
  assert status == 2, stderr[-2000:]
  line = stderr.strip().split("\n")[-1]
  assert line.startswith("error: "), stderr[-2000:]
  assert CASES[name][1] in line
  assert "Traceback" not in stderr
  assert not (tmp_path / "new").exists(), "nothing is written before the input is good"


def run_script(words):
  """Runs a script, or a module behind -m, as if it were the program."""
  if words[0] == "-m":
    return runpy.run_module(words[1], run_name="__main__")
  return runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line_and_status_2(name, tmp, tmp_path, monkeypatch, capsys):
  """In this process: the scripts define their flags anew for every case."""
  words = words_of(name, tmp, tmp_path)
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sharding, "mesh", lambda **_: None)  # it would stay in force
  monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
  try:
    with pytest.raises(SystemExit) as end:
      run_script(words)
  finally:
    for flag in set(flags.FLAGS) - _KNOWN_FLAGS:
      delattr(flags.FLAGS, flag)
  check(name, end.value.code, capsys.readouterr().err, tmp_path)


@pytest.mark.parametrize("name", SMOKES)
def test_a_process_ends_so_too(name, tmp, tmp_path):
  command = [sys.executable, *words_of(name, tmp, tmp_path)]
  got = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  check(name, got.returncode, got.stderr, tmp_path)


def test_a_run_older_than_an_option_has_its_default(tmp_path):
  from jaxpeft import config
  from jaxpeft.training import workdir as workdirs

  workdirs.prepare(tmp_path, config.base())
  file = tmp_path / "config.json"
  old = json.loads(file.read_text())
  del old["eval"]["limit"], old["mesh"]
  file.write_text(json.dumps(old))
  read = workdirs.read_config(tmp_path)
  assert read.eval.limit == config.base().eval.limit
  assert read.mesh.fsdp == -1
  workdirs.prepare(tmp_path, config.base())  # and is no other run


def test_a_directory_is_trained_in_by_one_process_at_a_time(tmp_path):
  from jaxpeft import config
  from jaxpeft.training import workdir as workdirs

  with open(tmp_path / ".lock", "w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process trains in"):
      workdirs.prepare(tmp_path, config.base())
  workdirs.prepare(tmp_path, config.base())
  workdirs.prepare(tmp_path, config.base())  # this one has it
