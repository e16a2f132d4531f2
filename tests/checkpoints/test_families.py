"""Every family with a LoRA, against PEFT, and with weights in 4 bits.

Logits, greedy tokens and exports of every family are in tests/transformer/test_decoder
and test_checkpoints, GGUF files in test_gguf. docs/models.md shows it all as a table.
"""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

import jaxpeft
from jaxpeft import tree
from jaxpeft.checkpoints import families, peft_names
from jaxpeft.errors import InputError
from jaxpeft.quantization import nf4
from jaxpeft.transformer import decoder
from jaxpeft.transformer.decoder import Stream, full_rows
from tests.support.families import ROWS, save

ATTENTION = "layers_.*/attn/.*"
TOKENS = np.random.default_rng(0).integers(3, 97, (2, 24))


def cross_entropy(logits, targets):
  logits = jax.nn.log_softmax(logits[:, :-1])
  return -jnp.mean(jnp.take_along_axis(logits, targets[:, 1:, None], -1))


@pytest.mark.parametrize("name", ROWS)
def test_a_lora_step_has_the_gradients_of_peft(name, tmp_path):
  """The adapter is written in PEFT's format, so this covers that, too."""
  base = save(name, tmp_path / "base")
  model = jaxpeft.load(str(tmp_path / "base"), dtype="float32")
  rule = {ATTENTION: jaxpeft.LoRA(rank=3)}
  params = jaxpeft.adapt(model.params, rule, jax.random.key(0))
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  rng = np.random.default_rng(1)
  theta = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), theta)
  if families.FAMILIES[model.config.family].fused:
    with pytest.raises(InputError, match="cannot be saved in PEFT's format"):
      peft_names.check_family(model.config)
    return

  def loss(theta):
    stream = Stream(jnp.asarray(TOKENS), full_rows(TOKENS.shape))
    adapted = tree.combine(theta, frozen)
    hidden = decoder.hidden(model.transformer, adapted, stream)
    return cross_entropy(decoder.logits(model.transformer, adapted, hidden), TOKENS)

  value, got = jax.jit(jax.value_and_grad(loss))(theta)
  jaxpeft.save_adapter(
    tree.combine(theta, frozen), tmp_path / "lora", "peft", base=model.params
  )
  theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora", is_trainable=True)
  tokens = torch.tensor(TOKENS)
  want = torch.nn.functional.cross_entropy(
    theirs(tokens).logits[:, :-1].reshape(-1, 97), tokens[:, 1:].reshape(-1)
  )
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  their = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.requires_grad}
  count = 0
  for path, grad in tree.flatten(got).items():
    *_, part, _, letter = path.split("/")
    for layer, mine in enumerate(np.asarray(grad)):
      key = f"layers.{layer}.self_attn.{part}_proj.lora_{letter.upper()}."
      (one,) = (g for n, g in their.items() if key in n)
      np.testing.assert_allclose(mine.T, one, atol=2e-5 * np.abs(one).max() + 1e-7)
      count += 1
  assert count == len(their) == 3 * 4 * 2


@pytest.mark.parametrize("name", ROWS)
def test_weights_in_four_bits(name, tmp_path):
  """Read in NF4, a model is the one whose projections transformers rounds to NF4."""
  wide = dict(hidden_size=64, intermediate_size=128, moe_intermediate_size=64)
  theirs = save(name, tmp_path, sizes=wide | dict(head_dim=16))
  model = jaxpeft.load(str(tmp_path), dtype="float32", quantize="nf4")
  experts = model.config.experts > 0
  rounded = 0
  with torch.no_grad():
    for path, weight in theirs.named_parameters():
      if weight.ndim >= 2 and ("self_attn" in path or ".mlp" in path):
        if path.endswith("gate.weight"):  # the router
          continue
        sizes = [64, 32, 32] if "qkv" in path else weight.shape[-2]
        sizes = weight.shape[-2] // 2 if "gate_up" in path else sizes
        for one in (
          weight.split(sizes, -2)
          if weight.ndim == 2
          else [part for expert in weight for part in expert.split(sizes, -2)]
        ):
          node = nf4.quantize(jnp.asarray(one.numpy().T))
          one.copy_(torch.tensor(np.asarray(node.dense()).T))
          rounded += 1
    want = theirs(torch.tensor(TOKENS)).logits.numpy()
  assert rounded == 3 * (4 + 3 * max(model.config.experts, 1))
  np.testing.assert_allclose(model(TOKENS), want, atol=2e-4)
  group = "experts" if experts else "mlp"
  assert isinstance(model.params["layers_0"][group]["down"], nf4.NF4)
