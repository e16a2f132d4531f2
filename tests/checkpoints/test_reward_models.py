"""Reward models in Hugging Face's and PEFT's files: equal scores there and here."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxpeft
from jaxpeft import assets, tree
from jaxpeft.data import batches, pairs
from jaxpeft.errors import InputError
from jaxpeft.objectives import head, reward
from tests.support.methods import LINEARS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

PAIRS = [
  ("Add 1 and 2.", " 3"),
  ("Add 1 and 2.", " It is 4, or so it seems."),
  ("Say no.\n", "no"),
]


@pytest.fixture(scope="module")
def tuned():
  """The toy with a random head and a random LoRA."""
  base = jaxpeft.load("embedded", dtype="float32")
  rules = {LINEARS: jaxpeft.LoRA(rank=2)}
  params = head.adapt(base.params, rules, jax.random.key(0))
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  rng = np.random.default_rng(0)
  theta = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), theta)
  return base.replace(params=tree.combine(theta, frozen))


def theirs(model, directory):
  """Scores of PAIRS by a model of transformers, in one batch padded on the right."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  end = tokenizer.eos_token
  batch = tokenizer([a + b + end for a, b in PAIRS], return_tensors="pt", padding=True)
  batch.pop("token_type_ids", None)
  with torch.no_grad():
    return model.eval()(**batch).logits[:, 0].numpy()


def classifier(directory, **options):
  kind = transformers.AutoModelForSequenceClassification
  model, info = kind.from_pretrained(
    directory, num_labels=1, dtype=torch.float32, output_loading_info=True, **options
  )
  return model, info


def test_transformers_opens_ours_and_it_comes_back(tuned, tmp_path):
  jaxpeft.save_hf(tuned, tmp_path)
  model, info = classifier(tmp_path)
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  assert type(model).__name__ == "LlamaForSequenceClassification"
  want = tuned.reward(PAIRS)
  assert np.ptp(want) > 0.1
  np.testing.assert_allclose(theirs(model, tmp_path), want, atol=1e-4)
  back = jaxpeft.load(str(tmp_path), dtype="float32")
  np.testing.assert_allclose(back.reward(PAIRS), want, atol=1e-4)
  with pytest.raises(InputError, match="GGUF holds no reward head"):
    jaxpeft.save_gguf(back, tmp_path / "x.gguf")


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_we_open_theirs_packed_and_padded(tmp_path, pad, capsys):
  """An untied model; with padding = end of text, it scores the token before that."""
  torch.manual_seed(0)
  shutil.copytree(assets.TINY, tmp_path, dirs_exist_ok=True)
  for weights in tmp_path.glob("*.safetensors"):
    weights.unlink()
  about = json.loads((tmp_path / "config.json").read_text())
  about |= dict(tie_word_embeddings=False, dtype="float32")
  config = transformers.LlamaConfig(**about, num_labels=1)
  tokenizer = transformers.AutoTokenizer.from_pretrained(assets.TINY)
  tokenizer.pad_token = pad
  tokenizer.save_pretrained(tmp_path)
  config.pad_token_id = tokenizer.pad_token_id
  made = transformers.LlamaForSequenceClassification(config).float()
  with torch.no_grad():
    made.score.weight.normal_()
  made.save_pretrained(tmp_path)
  ours = jaxpeft.load(str(tmp_path), dtype="float32")
  pool = "hf" if pad == "<eos>" else "last"
  want = theirs(made, tmp_path)
  np.testing.assert_allclose(ours.reward(PAIRS, pool), want, atol=1e-4)
  if pad == "<eos>":
    assert np.abs(ours.reward(PAIRS) - want).max() > 1e-2
  rows = [dict(prompt=a, chosen=b, rejected="") for a, b in PAIRS]
  found = reward.Reward(pool="last").encode(rows, ours.tokenizer, 200, "x")
  packed = pairs.to_arrays([*batches.pack(found.examples, 200)], 200)
  if pool == "last":
    scores = np.asarray(reward.rewards(ours.transformer, ours.params, packed))[0, ::2]
    np.testing.assert_allclose(sorted(scores[:3]), sorted(want), atol=1e-4)
  with pytest.raises(InputError, match="no head for words"):
    ours.generate(["a"], 1)
  if pad == "<eos>":
    jaxpeft.save_hf(ours, tmp_path / "again")
    assert "scores the token before the end" in capsys.readouterr().err


def test_peft_opens_ours_and_we_open_theirs(tuned, tmp_path):
  base = jaxpeft.load("embedded", dtype="float32")
  jaxpeft.save_adapter(tuned.params, tmp_path, "peft", base=base.params)
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  assert config["modules_to_save"] == ["score"]
  assert config["task_type"] == "SEQ_CLS"
  model, _ = classifier(assets.TINY)
  wrapped = peft.PeftModel.from_pretrained(model, tmp_path)
  want = tuned.reward(PAIRS)
  np.testing.assert_allclose(theirs(wrapped, assets.TINY), want, atol=1e-4)
  wrapped.save_pretrained(tmp_path / "theirs")
  for folder in (tmp_path, tmp_path / "theirs"):
    params = jaxpeft.load_adapter(base.params, folder)
    got = base.replace(params=params).reward(PAIRS)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_rewards_of_bad_texts_are_refused(tuned):
  for texts, says in (
    ("a", "must be a list, not the text"),
    ([3], "text 0 must be a text, or a prompt and an answer, not int"),
    ([("a", 2)], "text 0 must be a text"),
    (["a " * 2000], "tokens; the model takes 1 to"),
  ):
    with pytest.raises(InputError, match=says):
      tuned.reward(texts)
  with pytest.raises(InputError, match="unknown pool 'mean'"):
    tuned.reward(["a"], "mean")
  with pytest.raises(InputError, match="has no reward head"):
    jaxpeft.load("embedded", dtype="float32").reward(["a"])
  assert tuned.reward([]).shape == (0,)
  both = tuned.reward(["Add 1 and 2. 3", ("Add 1 and 2.", " 3")], batch_size=1)
  np.testing.assert_allclose(both[0], both[1], atol=1e-6)
