"""Writes what TRL's RewardTrainer computes on a few rows, for tests of reward models.

  pip install trl peft torch   # TRL 1.16, PEFT 0.21
  python tools/make_reward_fixture.py

It takes the embedded toy with a random score head and a LoRA whose factors are random.
TRL tokenizes the rows. For each case the file has the rewards, the loss, TRL's metrics,
the gradients, and the weights after one step of SGD. In the case "padding" the padding
token is the end of text, as TRL has it where a tokenizer names none.
"""

import collections
import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from safetensors.numpy import save_file
from trl import RewardConfig, RewardTrainer

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "jaxpeft" / "assets" / "tiny"
OUT = ROOT / "tests" / "objectives" / "trl_reward.safetensors"
RATE = 0.1
METRICS = ("accuracy", "margin", "mean_reward")
TALK = "\n\nHuman: Add 1 and 2.\n\nAssistant:"
ROWS = [
  dict(prompt="Add 1 and 2.", chosen=" It is 3", rejected=" 4", margin=0.5),
  dict(prompt="Add 7 and 20.\n", chosen="27", rejected="It is 28 or 29", margin=-1.0),
  dict(prompt=TALK, chosen=" 3", rejected=" 2\n\nHuman: No", margin=0.0),
]
# name -> (whether rows have margins, coefficient of centring, padding token)
CASES = {
  "plain": (False, None, None),
  "margin": (True, None, None),
  "center": (False, 0.2, None),
  "padding": (False, None, "eos"),
}


def trainer(with_margins, center, pad):
  torch.manual_seed(0)
  tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
  if pad:
    tokenizer.pad_token = tokenizer.eos_token
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    TINY, num_labels=1, dtype=torch.float32, attn_implementation="eager"
  )
  lora = LoraConfig(
    r=1, lora_alpha=2, target_modules=["v_proj"], task_type="SEQ_CLS",
    modules_to_save=["score"],
  )  # fmt: skip
  args = RewardConfig(
    output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[],
    gradient_checkpointing=False, center_rewards_coefficient=center,
  )  # fmt: skip
  keys = [k for k in ROWS[0] if with_margins or k != "margin"]
  rows = [{key: row[key] for key in keys} for row in ROWS]
  found = RewardTrainer(
    model, args=args, train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer, peft_config=lora,
  )  # fmt: skip
  found.model.eval()
  return found


def fill(model) -> dict:
  """Sets the trained weights to random numbers; {name: weight}."""
  rng, found = np.random.default_rng(0), {}
  for name, x in model.named_parameters():
    if x.requires_grad:
      found[name] = x
      scale = 0.2 if "lora_" in name else 0.1
      with torch.no_grad():
        x.copy_(torch.tensor(scale * rng.normal(size=x.shape), dtype=torch.float32))
  return found


def stacked(weights: dict, of) -> dict:
  """{a, b, score}: our orientation, with the layers of a LoRA's factor stacked."""
  out = {}
  for key, part in {"a": "lora_A", "b": "lora_B", "score": "score"}.items():
    some = [of(x) for name, x in weights.items() if part in name]
    found = [x.detach().numpy().T.copy() for x in some]
    out[key] = found[0] if key == "score" else np.stack(found)
  return out


def main():
  out = {}
  for name, case in CASES.items():
    made = trainer(*case)
    weights = fill(made.model)
    out |= {f"{name}/start/{k}": x for k, x in stacked(weights, lambda x: x).items()}
    batch = made.data_collator(list(made.train_dataset))
    made._metrics["eval"] = collections.defaultdict(list)
    loss, outputs = made.compute_loss(made.model, batch, return_outputs=True)
    out[f"{name}/rewards"] = outputs.logits.detach().numpy().reshape(2, -1).T
    loss.backward()
    out[f"{name}/loss"] = np.float32([loss.item()])
    metrics = [made._metrics["eval"][metric][0] for metric in METRICS]
    out[f"{name}/metrics"] = np.array(metrics, np.float32)
    grads = stacked(weights, lambda x: x.grad)
    out |= {f"{name}/grad/{k}": x for k, x in grads.items()}
    torch.optim.SGD(weights.values(), RATE).step()
    out |= {f"{name}/step/{k}": x for k, x in stacked(weights, lambda x: x).items()}
    print(name, loss.item(), metrics, {k: list(x.shape) for k, x in weights.items()})
  rows = json.dumps(dict(rows=ROWS, rate=RATE))
  arrays = {k: np.ascontiguousarray(x) for k, x in out.items()}
  save_file(arrays, OUT, dict(about=rows))


if __name__ == "__main__":
  main()
