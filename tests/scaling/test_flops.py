"""FLOPs by rule: counted by torch, by the authors' code, and by the papers' numbers."""

import pytest

from jaxpeft.errors import InputError
from jaxpeft.scaling import flops
from jaxpeft.transformer.shapes import SHAPES

PALM = flops.Shape(18_432, 118, 48, 256, 73_728, 256_000, kv_heads=1, tied=True)


def gpt(width, depth, vocabulary=50_257):
  """A shape of Kaplan's kind: heads as wide as the model, a plain MLP of 4 widths."""
  return flops.Shape(
    width, depth, width // 64, 64, 4 * width, vocabulary, gated=False, tied=True
  )


def test_products_are_what_torch_counts_in_a_step_of_transformers():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from torch.utils.flop_counter import FlopCounterMode

  config = transformers.LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    attn_implementation="eager",
  )  # fmt: skip
  model = transformers.LlamaForCausalLM(config)
  tokens = torch.zeros((2, 24), dtype=torch.long)
  with FlopCounterMode(display=False) as counter:
    model(tokens).logits.sum().backward()
  counted = sum(counter.get_flop_counts()["Global"].values())
  shape = flops.Shape(32, 3, 4, 8, 80, 96, kv_heads=2)
  assert 2 * 24 * flops.per_token(shape, "products", 24) == counted


def test_weights_are_those_of_the_models():
  norms = {"llama2-7b": 65 * 4096, "gemma-2b": 37 * 2048, "llama3.2-1b": 33 * 2048}
  counts = {
    "llama2-7b": 6_738_415_616,
    "gemma-2b": 2_506_172_416,
    "llama3.2-1b": 1_235_814_400,
  }
  for name, count in counts.items():
    shape = flops.Shape.of(SHAPES[name])
    assert shape.total + norms[name] == count, name
    assert shape.body == shape.total - (1 if shape.tied else 2) * shape.table


def test_of_experts_a_token_pays_for_those_that_it_uses():
  mixtral = flops.Shape(
    4096, 32, 32, 128, 14_336, 32_000, kv_heads=8, experts=8, experts_per_token=2
  )
  assert mixtral.total == pytest.approx(46.7e9, rel=1e-3)
  used = flops.per_token(mixtral, "6n") / 6
  assert used == pytest.approx(12.9e9, rel=2e-3)
  one = flops.Shape(4096, 32, 32, 128, 14_336, 32_000, kv_heads=8)
  assert one.router == 0
  assert mixtral.active - one.active == 32 * (one.expert + 8 * 4096)


def test_kaplans_count_without_embeddings():
  shape = gpt(1600, 48)
  assert shape.body == 12 * 48 * 1600**2  # N of Kaplan et al., equation 2.1
  assert flops.per_token(shape, "kaplan") == 6 * shape.body
  ratio = flops.per_token(shape, "kaplan-attention", 1024) / (6 * shape.body)
  assert ratio == pytest.approx(1 + 1024 / (12 * 1600))
  last = flops.per_token(shape, "last-layer") - 6 * shape.body
  assert last == 6 * 1600 * 50_257
  assert flops.per_token(shape, "6n") == 6 * shape.total


def test_palms_utilization_is_the_papers():
  assert PALM.total == pytest.approx(540.35e9, rel=5e-4)
  # appendix B: 238.3 thousand tokens a second on 6144 chips of 275 TFLOPs are 46.2 %
  mfu = 238.3e3 * flops.per_token(PALM, "palm", 2048) / (6144 * 275e12)
  assert mfu == pytest.approx(0.462, abs=5e-4)


def test_hoffmanns_count_is_the_list_of_appendix_f():
  layers, width, ff, heads, key, vocabulary, seq = 20, 1024, 4096, 16, 64, 32_000, 2048
  embeddings = 2 * seq * vocabulary * width
  attention = 2 * 3 * seq * width * key * heads  # queries, keys, values
  attention += 2 * seq * seq * key * heads  # scores
  attention += 3 * heads * seq * seq  # softmax
  attention += 2 * seq * seq * key * heads  # reductions
  attention += 2 * seq * key * heads * width  # output
  dense = 2 * seq * (width * ff + width * ff)
  forward = embeddings + layers * (attention + dense) + 2 * seq * width * vocabulary
  shape = flops.Shape(width, layers, heads, key, ff, vocabulary, gated=False, tied=True)
  assert seq * flops.per_token(shape, "hoffmann", seq) == pytest.approx(3 * forward)


@pytest.mark.parametrize(
  ("width", "depth", "all_", "without"),
  [  # printed by `flops_per_token_gqa` of the authors' repository
    (256, 3, 111_752_256, 34_485_312), (256, 80, 996_737_280, 919_470_336),
    (1024, 28, 3_578_148_864, 3_269_081_088),
    (3072, 12, 11_925_116_928, 10_997_913_600), (768, 45, 3_375_938_880, 3_144_138_048),
  ],
)  # fmt: skip
def test_gemstones_count_is_that_of_the_authors(width, depth, all_, without):
  assert flops.gemstones(width, depth) == all_
  assert flops.gemstones(width, depth, vocabulary=0) == without
  shape = flops.Shape(
    width, depth, width // 128, 128, 4 * width, 50_304, kv_heads=width // 256
  )
  assert flops.per_token(shape, "gemstones", 2048) == all_


def test_a_frozen_weight_costs_two_thirds():
  assert flops.finetuning(100, 0) == 400
  assert flops.finetuning(0, 100) == flops.finetuning(100, 100) - 400 == 600


def test_the_rules_are_ordered_and_an_unknown_one_is_named():
  shape = flops.Shape.of(SHAPES["llama2-7b"])
  cost = {rule: flops.per_token(shape, rule, 4096) for rule in flops.RULES}
  assert cost["kaplan"] < cost["last-layer"] < cost["6n"] < cost["palm"]
  assert cost["kaplan"] < cost["kaplan-attention"] < cost["products"]
  assert cost["products"] < cost["hoffmann"]
  with pytest.raises(InputError, match="Did you mean 'gemstones'"):
    flops.per_token(shape, "gemstone")
