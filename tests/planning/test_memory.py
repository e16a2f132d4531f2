"""The compiled plan of a run's memory: what train.py prints, and for an H100."""

import subprocess
import sys

import jax
import pytest

from jaxpeft import ModelConfig, Transformer, config, model
from jaxpeft.errors import InputError
from jaxpeft.planning import memory, search, targets
from jaxpeft.quantization import nf4
from tests.support import aot
from tests.support.methods import LINEARS


def lora(**changes):
  c = config.base()
  c.adapt.main = dict(name="LoRA", match=LINEARS, rank=8)
  c.train.batch_size = 4
  for key, value in changes.items():
    c.model[key] = value
  return c


def test_arguments_are_exact_and_4_bits_are_fewer():
  plain, small = memory.plan(lora()), memory.plan(lora(quantize="nf4"))
  trained = 81_920 * 4
  assert plain.trainable == small.trainable == trained
  assert plain.optimizer == pytest.approx(2 * trained, abs=64)
  assert plain.batch == 5 * 4 * 192 * 4
  projections = 4 * (4 * 128 * 128 + 3 * 128 * 384)
  assert plain.quantized == 0
  assert small.base == plain.base - 4 * projections
  assert small.quantized == pytest.approx(projections * 4.127 / 8, rel=0.01)
  for plan in (plain, small):
    whole = plan.base + plan.quantized + plan.trainable + plan.optimizer + plan.batch
    assert plan.total == pytest.approx(whole + plan.temporaries, rel=0.02)
  assert "temporaries" in str(plain)


def test_what_is_traced_of_the_temporaries():
  kept, layers, away = (
    memory.plan(lora(remat=remat)) for remat in ("none", "layer", "offload")
  )
  assert kept.traced["gradients"] == kept.trainable
  hidden = 4 * 192 * 128 * 4  # bytes of four rows in float32, that a layer gets
  inputs = layers.traced["activations"] - away.traced["activations"]
  assert inputs == 4 * hidden
  saved = kept.traced["activations"] - layers.traced["activations"]
  assert kept.temporaries - layers.temporaries == pytest.approx(saved, rel=0.3)
  for plan in (kept, layers):
    assert sum(plan.traced.values()) <= plan.temporaries
    assert "activations" in str(plan)


def test_weights_of_the_65b_model_as_qlora_counts_them():
  """Dettmers et al. 2023: 32.38 GB of codes, 0.127 bits a number of scales."""
  net = Transformer(
    ModelConfig(
      "llama", vocab_size=32_000, width=8192, depth=80, heads=64, kv_heads=64,
      head_dim=128, ff=22_016, max_positions=2048,
    ),
    dtype="bfloat16",
  )  # fmt: skip
  params = jax.eval_shape(lambda: nf4.quantize_tree(model.init(net, 0)))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  assert size == pytest.approx(34.46e9, rel=1e-3)


def test_the_largest_that_fits(monkeypatch):
  tried = []

  def plan(c, target):  # rows of 10 MB, over 5 MB
    tried.append(c.train.batch_size)
    empty = dict.fromkeys(memory.Plan._fields, 0)
    return memory.Plan(**empty | dict(total=5_000_000 + 10_000_000 * tried[-1]))

  monkeypatch.setattr(memory, "plan", plan)
  for start in (1, 4, 300):
    c = lora()
    c.train.batch_size = start
    rows, found = search.largest(
      c, "cpu", search.parse_bytes("1GB"), "rows", lambda x: 0
    )
    assert 93 <= rows <= 99
    assert found.total <= 10**9
  c.train.accumulate = 4
  assert search.largest(c, "cpu", 95_000_000, "rows", lambda x: 0)[0] == 8
  assert len(tried) < 40
  with pytest.raises(InputError, match=r"train.batch_size=4 needs 45 MB"):
    search.largest(c, "cpu", 1000, "rows")
  assert search.parse_bytes("1.5 GiB") == 1.5 * 2**30
  for text in ("24", "GB", "24 apples", "1..2GB"):
    with pytest.raises(InputError, match="24GiB"):
      search.parse_bytes(text)


@pytest.mark.slow
def test_the_command_line_compares_and_plots_and_fits(tmp_path):
  def run(*words):
    command = [sys.executable, "-m", "jaxpeft", "memory", *words]
    command += ["--config.train.batch_size=1", f"--plot={tmp_path / 'p.png'}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=aot.ROOT)

  out = run("--config=configs/lora.py,configs/qlora.py")
  assert out.returncode == 0, out.stderr
  assert [line.split()[0] for line in out.stdout.splitlines()[1:3]] == ["lora", "qlora"]
  assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
  out = run("--config=configs/lora.py", "--fit=1MB", "--over=rows")
  assert (out.returncode, "train.batch_size=1 needs" in out.stderr) == (2, True)
  out = run("--config=configs/lora.py,configs/qlora.py", "--fit=30MB")
  assert (out.returncode, "--fit is for one config" in out.stderr) == (2, True)


def test_what_cannot_be_planned_is_refused(monkeypatch):
  with pytest.raises(InputError, match=r"target.*h100.*v5e"):
    memory.plan(lora(), "tpu")
  monkeypatch.setattr(targets, "_has", lambda module: False)
  with pytest.raises(InputError, match="jax-cuda13-pjrt"):
    memory.plan(lora(), "h100")
  c = lora()
  c.train.accumulate = 3
  with pytest.raises(InputError, match="does not divide"):
    memory.plan(c)
  c.train.batch_size = 0
  with pytest.raises(InputError, match=r"train\.batch_size 0"):
    memory.plan(c)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("target", "many"),
  [("h100", ":"), ("a100-40gb", ":"), ("h100x2", ", on each of 2")],
)
def test_compiles_for_h100s_without_one(target, many):
  command = [sys.executable, "-m", "jaxpeft", "memory", "--config=configs/qlora.py"]
  command += [f"--target={target}", "--config.train.batch_size=2"]
  env = aot.environment("jax_cuda13_plugin", "jax_plugins.xla_cuda13")
  out = subprocess.run(command, capture_output=True, text=True, cwd=aot.ROOT, env=env)
  assert out.returncode == 0, out.stderr
  assert f"compiled for {target}{many}" in out.stdout
  assert ("all-gather" in out.stdout) == target.endswith("x2")


@pytest.mark.slow
def test_what_4_bits_and_chosen_tokens_save_of_llama2_7b():
  def plan(method, quantize, remat, fraction=1.0):
    c = config.base()
    c.model.source, c.model.quantize, c.model.remat = "init:llama2-7b", quantize, remat
    match = LINEARS if method == "LoRA" else ".*"
    c.adapt.main = dict(name=method, match=match)
    c.tokens.fraction, c.data.max_tokens, c.train.batch_size = fraction, 2048, 1
    return memory.plan(c)

  full, qlora = plan("Full", "", "layer"), plan("LoRA", "nf4", "layer")
  assert qlora.total < 0.10 * full.total
  all_kept, some = plan("LoRA", "nf4", "none"), plan("LoRA", "nf4", "none", 0.1)
  assert some.temporaries < 0.3 * all_kept.temporaries
