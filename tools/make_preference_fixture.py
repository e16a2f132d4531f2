"""Writes what TRL's trainers compute on a few pairs, for tests of preferences.

  pip install trl peft torch   # TRL 1.16, PEFT 0.21
  python tools/make_preference_fixture.py

It takes the embedded toy with a LoRA whose two factors are random, so that policy and
reference differ, and pairs of random tokens. For every loss it stores the loss, TRL's
metrics, the gradient of the factors, and the factors after one step of SGD. TRL takes
the mean of the chosen's NLL over the tokens of a batch; jaxpeft over those of a pair,
and then over the pairs. Losses with that term are therefore taken pair by pair here.
"""

import collections
import pathlib
import tempfile
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "jaxpeft" / "assets" / "tiny"
OUT = ROOT / "tests" / "objectives" / "trl_preference.safetensors"
RATE = 0.5
METRICS = ("chosen", "rejected", "accuracies", "margins")
LENGTHS = ((4, 5, 3), (6, 2, 4), (3, 6, 6))  # prompt, chosen, rejected
SHORT = tuple((1, chosen, rejected) for _, chosen, rejected in LENGTHS)


def pairs(lengths) -> list[tuple[list[int], list[int], list[int]]]:
  """(prompt, chosen, rejected) of random tokens."""
  rng = np.random.default_rng(1)
  return [tuple(rng.integers(3, 400, n).tolist() for n in some) for some in lengths]


def policy():
  """The toy with a LoRA on its values, and its factors by name."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    TINY, dtype=torch.float32, attn_implementation="eager"
  )
  lora = LoraConfig(r=1, lora_alpha=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
  return model, lora


def fill(model):
  """Sets the factors of a LoRA to numbers that the test draws again."""
  rng = np.random.default_rng(0)
  found = {}
  for name, x in model.named_parameters():
    if "lora_" in name and ".ref." not in name:
      found[name] = x
      with torch.no_grad():
        x.copy_(torch.tensor(0.2 * rng.normal(size=x.shape), dtype=torch.float32))
  return found


def dpo(loss_type, beta, weights=None, smoothing=0.0) -> tuple[Any, Callable]:
  """(model, function of pairs) of a DPOTrainer."""
  model, lora = policy()
  tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
  names = ("prompt_ids", "chosen_ids", "rejected_ids")
  unused = [dict(prompt="1+1?", chosen="2", rejected="3")]  # it wants some data
  args = DPOConfig(
    output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[],
    gradient_checkpointing=False, beta=beta, loss_type=loss_type,
    loss_weights=weights, label_smoothing=smoothing,
  )  # fmt: skip
  trainer = DPOTrainer(
    model, args=args, train_dataset=Dataset.from_list(unused),
    processing_class=tokenizer, peft_config=lora,
  )  # fmt: skip
  trainer.model.eval()

  def run(some):
    batch = trainer.data_collator([dict(zip(names, p, strict=True)) for p in some])
    trainer._metrics["eval"] = collections.defaultdict(list)
    loss = trainer.compute_loss(trainer.model, batch)
    return loss, [trainer._metrics["eval"][f"rewards/{m}"][0] for m in METRICS]

  return trainer.model, run


def without_reference(kind, **options):
  """(model, function of pairs) of a CPOTrainer or an ORPOTrainer.

  Their loss reads only the options given here, so no whole trainer is built.
  """
  model, lora = policy()
  model = get_peft_model(model, lora)
  model.eval()
  trainer = object.__new__(kind)
  gather = types.SimpleNamespace(
    device=torch.device("cpu"), gather_for_metrics=lambda x: x
  )
  known = dict(
    accelerator=gather, is_encoder_decoder=False, aux_loss_enabled=False,
    pad_token_id=0, padding_value=0, alpha=0.0, label_smoothing=0.0, cpo_alpha=0.0,
  )  # fmt: skip
  trainer.__dict__.update(known | options)

  def side(some, at):
    width = max(len(p[0]) + len(p[at]) for p in some)
    out = [np.zeros((len(some), width), np.int64) for _ in range(3)]
    out[2][:] = -100
    for ids, mask, labels, pair in zip(*out, some, strict=True):
      text, start = pair[0] + pair[at], len(pair[0])
      ids[: len(text)], mask[: len(text)] = text, 1
      labels[start : len(text)] = pair[at]
    return map(torch.tensor, out)

  def run(some):
    batch = {}
    for at, name in ((1, "chosen"), (2, "rejected")):
      parts = ("input_ids", "attention_mask", "labels")
      batch |= {f"{name}_{k}": x for k, x in zip(parts, side(some, at), strict=True)}
    loss, found = trainer.get_batch_loss_metrics(model, batch)
    return loss, [found[f"rewards/{m}"] for m in METRICS]

  return model, run


# name -> (how to make it, lengths, whether pair by pair)
CASES = {
  "sigmoid": (lambda: dpo(["sigmoid"], 0.3), LENGTHS, False),
  "ipo": (lambda: dpo(["ipo"], 0.1), LENGTHS, False),
  "hinge": (lambda: dpo(["hinge"], 0.5), LENGTHS, False),
  "smooth": (lambda: dpo(["aot"], 0.3, smoothing=0.1), LENGTHS, True),
  "nll": (lambda: dpo(["sigmoid", "sft"], 0.3, [1.0, 0.5]), LENGTHS, True),
  "free": (
    lambda: without_reference(
      CPOTrainer, loss_type="sigmoid", beta=0.1, label_smoothing=0.2
    ),
    LENGTHS,
    False,
  ),
  "free_hinge": (
    lambda: without_reference(CPOTrainer, loss_type="hinge", beta=0.1),
    LENGTHS,
    False,
  ),
  "free_ipo": (
    lambda: without_reference(CPOTrainer, loss_type="ipo", beta=0.5),
    LENGTHS,
    False,
  ),
  "simpo": (
    lambda: without_reference(CPOTrainer, loss_type="simpo", beta=2.0, simpo_gamma=1.0),
    LENGTHS,
    False,
  ),
  "simpo_nll": (
    lambda: without_reference(
      CPOTrainer, loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.5
    ),
    LENGTHS,
    True,
  ),
  "orpo": (lambda: without_reference(ORPOTrainer, beta=0.25), SHORT, True),
}


def main():
  out = {}
  for name, (make, lengths, alone) in CASES.items():
    model, run = make()
    factors = fill(model)
    some = pairs(lengths)
    batches = [[pair] for pair in some] if alone else [some]
    optimizer = torch.optim.SGD(factors.values(), RATE)
    losses, metrics = [], []
    for batch in batches:
      loss, found = run(batch)
      (loss / len(batches)).backward()
      losses.append(loss.item())
      metrics.append(found)
    out[f"{name}/loss"] = np.float32(np.mean(losses)).reshape(1)
    out[f"{name}/metrics"] = np.mean(metrics, 0).astype(np.float32)
    layers = {s: [x for n, x in factors.items() if f"lora_{s}" in n] for s in "AB"}
    for side, xs in layers.items():
      out[f"{name}/grad_{side.lower()}"] = np.stack([x.grad.numpy().T for x in xs])
    optimizer.step()
    for side, xs in layers.items():
      moved = np.stack([x.detach().numpy().T for x in xs])
      out[f"{name}/step_{side.lower()}"] = moved
    print(name, losses, metrics)
  save_file({k: np.ascontiguousarray(x) for k, x in out.items()}, OUT)


if __name__ == "__main__":
  main()
