"""The compiled plan of a run's memory: what train.py prints, and for an H100."""

import subprocess
import sys

import aot
import pytest

from jaxpeft import config, memory, targets
from jaxpeft.errors import InputError

LINEARS = "layers_.*/(attn|mlp)/.*"


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
  assert plain.optimiser == pytest.approx(2 * trained, abs=64)
  assert plain.batch == 5 * 4 * 192 * 4
  projections = 4 * (4 * 128 * 128 + 3 * 128 * 384)
  assert plain.quantised == 0
  assert small.base == plain.base - 4 * projections
  assert small.quantised == pytest.approx(projections * 4.127 / 8, rel=0.01)
  for plan in (plain, small):
    whole = plan.base + plan.quantised + plan.trainable + plan.optimiser + plan.batch
    assert plan.total == pytest.approx(whole + plan.temporaries, rel=0.02)
  assert "temporaries" in str(plain)


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


@pytest.mark.parametrize(
  ("target", "many"), [("h100", ":"), ("h100x2", ", on each of 2")]
)
def test_compiles_for_h100s_without_one(target, many):
  command = [sys.executable, "-m", "jaxpeft", "memory", "--config=configs/qlora.py"]
  command += [f"--target={target}", "--config.train.batch_size=2"]
  env = aot.environment("jax_cuda13_plugin", "jax_plugins.xla_cuda13")
  out = subprocess.run(command, capture_output=True, text=True, cwd=aot.ROOT, env=env)
  assert out.returncode == 0, out.stderr
  assert f"compiled for {target}{many}" in out.stdout


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
