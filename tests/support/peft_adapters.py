"""Adapters that PEFT itself makes and opens: the oracle of the tests of its format."""

import json
import pathlib

import numpy as np
import peft
import torch
import transformers

from tests.support import families

TOKENS = np.random.default_rng(0).integers(3, 97, (2, 24))
NAMES = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]
QV = dict(target_modules=["q_proj", "v_proj"])  # an option of `lora`


class Bases:
  """The directories of tiny models, each made when it is first asked for."""

  def __init__(self, root: pathlib.Path):
    self._root = root

  def __call__(self, family: str) -> pathlib.Path:
    """The directory of a family's model."""
    if not (self._root / family).exists():
      families.save(family, self._root / family)
    return self._root / family


def lora(**options):
  """PEFT's config of a LoRA on all projections, with other options."""
  return peft.LoraConfig(**dict(r=4, lora_alpha=6, target_modules=NAMES) | options)


def base(folder):
  """The model in a directory, as transformers opens it."""
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  return theirs.float().eval()


def logits(theirs):
  """Logits of `TOKENS`."""
  with torch.no_grad():
    return theirs(torch.tensor(TOKENS)).logits.numpy()


def make(folder, config, directory):
  """A PEFT model whose trained parameters are moved by noise, after saving it."""
  torch.manual_seed(1)
  theirs = peft.get_peft_model(base(folder), config)
  with torch.no_grad():
    for p in theirs.parameters():
      if p.requires_grad:
        p += 0.1 * torch.randn_like(p)
  theirs.save_pretrained(directory)
  return theirs.eval()


def opened(folder, directory):
  """The saved adapter, as PEFT opens it, on the model in a directory."""
  return peft.PeftModel.from_pretrained(base(folder), directory)


def near(a, b, atol=1e-4):
  """Fails if two arrays differ."""
  np.testing.assert_allclose(a, b, atol=atol)


def edit(directory, **changes):
  """Changes options of a saved adapter."""
  path = directory / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
