"""Which layers have a window, where config.json leaves it to the family."""

import pytest
import transformers

from jaxpeft.checkpoints import hf_config
from jaxpeft.transformer.attention import EVERYWHERE

SIZES = dict(
  vocab_size=97,
  hidden_size=32,
  num_hidden_layers=7,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=48,
  head_dim=8,
  sliding_window=9,
)


@pytest.mark.parametrize(
  "kind", ["Gemma2Config", "Gemma3TextConfig", "Olmo3Config", "MistralConfig"]
)
def test_windows_of_a_config_without_layer_types(kind):
  """As every Gemma 2 on the hub has it: transformers fills layer_types in."""
  theirs = getattr(transformers, kind)(**SIZES)
  values = theirs.to_dict()
  types = values.pop("layer_types", ["sliding_attention"] * 7)
  ours = hf_config.from_hf(values)
  assert [w != EVERYWHERE for w in ours.windows] == [t[0] == "s" for t in types]
  assert set(ours.windows) <= {9, EVERYWHERE}
