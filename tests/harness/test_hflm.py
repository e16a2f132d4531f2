"""The harness's own Hugging Face model gives the same numbers, texts and prompts."""

import pathlib
import types

import numpy as np
import pytest

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import sources

pytest.importorskip("lm_eval", reason="needs pip install -e '.[eval]'")

from jaxpeft.harness import lm
from tests.support import real as support

TALK = [
  dict(role="system", content="Be brief."),
  dict(role="user", content="  What is 2+3? "),
  dict(role="assistant", content="It is "),
]


def pair(source, **theirs):
  """(our model, the harness's own) of one source."""
  import torch
  import transformers
  from lm_eval.models.huggingface import HFLM

  ours = jaxpeft.load(str(source), dtype="float32")
  folder, more = pathlib.Path(source), {}
  if folder.is_file():
    folder, more = folder.parent, dict(gguf_file=folder.name)
  net = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, **more
  )
  words = transformers.AutoTokenizer.from_pretrained(folder, **more)
  options = dict(batch_size=4, device="cpu") | theirs
  return ours, HFLM(pretrained=net, tokenizer=words, **options)


def request(*args):
  return types.SimpleNamespace(args=args)


def same(ours, theirs, texts, length, atol):
  """Compares all that the harness asks, of texts in which " A" and " B" may follow."""
  mine = lm.Lm(model=ours, max_length=length, batch_size=3, max_gen_toks=16)
  asked = [request(x, own) for x in texts for own in (" A", " B and", x[-9:])]
  asked += [request(texts[0] + "  ", "A"), request("", texts[0]), request("a", " b")]
  got, want = mine.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
  np.testing.assert_allclose([x[0] for x in got], [x[0] for x in want], atol=atol)
  assert [x[1] for x in got] == [x[1] for x in want]
  whole = [request(x) for x in (*texts, "\n\n".join(texts))]
  got, want = mine.loglikelihood_rolling(whole), theirs.loglikelihood_rolling(whole)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=atol)
  options = dict(until=["\n\n", "Question:"], do_sample=False, max_gen_toks=16)
  asked = [request(x, options) for x in texts]
  got = mine.generate_until(asked)
  assert got == theirs.generate_until(asked, disable_tqdm=True)
  # What greedy gives is called greedy.
  own = [request(x, text) for x, text in zip(texts, got, strict=True) if text]
  flags = [x[1] for x in mine.loglikelihood(own)]
  assert flags == [x[1] for x in theirs.loglikelihood(own, disable_tqdm=True)]
  assert any(flags)


@pytest.mark.slow
@pytest.mark.parametrize("length", [48, 1024])
def test_the_toy_gives_what_the_harnesss_own_model_gives(length):
  ours, theirs = pair(assets.TINY, max_length=length)
  rows = sources.embedded("one_step/test")[:5]
  texts = [f"Question: {x['question']}\nAnswer:" for x in rows]
  same(ours, theirs, texts, length, 1e-3)
  mine = lm.Lm(model=ours)
  assert mine.max_length == 1024
  assert mine.prefix_token_id == theirs.prefix_token_id
  assert mine.eot_token_id == theirs.eot_token_id
  for text in ("ab c", "<bos>ab", ""):
    assert mine.tok_encode(text) == theirs.tok_encode(text)


@pytest.fixture(scope="module")
def real():
  return support.path()


@pytest.mark.slow
def test_smollm2_gives_what_the_harnesss_own_model_gives(real, data_dir):
  ours, theirs = pair(real, max_length=96)
  rows = sources.read(data_dir / "gsm8k" / "test.jsonl", 4)
  texts = [f"Question: {x['question']}\nAnswer:" for x in rows]
  same(ours, theirs, texts, 96, 1e-3)
  mine = lm.Lm(model=ours)
  for header, talk in ((True, TALK[:2]), (False, TALK), (True, TALK[1:2])):
    got = mine.apply_chat_template(talk, add_generation_prompt=header)
    assert got == theirs.apply_chat_template(talk, add_generation_prompt=header)
  assert mine.chat_template(True) == theirs.chat_template(True)
