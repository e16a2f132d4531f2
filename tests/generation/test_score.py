"""Log-likelihoods of completions against transformers' logits of the whole text."""

import jax
import numpy as np
import pytest
import tokenizers
import torch

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import encode, tokenizer
from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.errors import InputError
from jaxpeft.generation import decode, score
from jaxpeft.generation.ask import Conversation, LocalAsk, Request, completion_ids
from tests.support.families import save


def expected(theirs, prompt, completion):
  """The sum of log-probabilities, from one forward pass over prompt and completion."""
  text = torch.tensor([[*prompt, *completion]])
  with torch.no_grad():
    logp = theirs(text).logits[0].double().log_softmax(-1)
  return sum(
    logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion)
  )


@pytest.mark.slow  # evaluation/test_choice.py compares one family by default
@pytest.mark.parametrize("name", ["gemma3", "llama", "mixtral"])
def test_scores_equal_transformers(name, tmp_path):
  theirs = save(name, tmp_path)
  ours = jaxpeft.load(str(tmp_path), dtype="float32")
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(3, 97, n).tolist()  # noqa: E731
  prompts = [draw(n) for n in (1, 7, 20)]
  asked = [[draw(1), draw(4), draw(2)], [draw(3)], [draw(2), draw(4)]]
  got = score.score(ours.transformer, ours.params, prompts, asked)
  want = [
    [expected(theirs, p, c) for c in some]
    for p, some in zip(prompts, asked, strict=True)
  ]
  assert [len(x) for x in got] == [3, 1, 2]
  np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=2e-4)
  one = score.score(ours.transformer, ours.params, prompts, [x[:1] for x in asked])
  np.testing.assert_allclose(np.concatenate(one), [x[0] for x in want], atol=2e-4)


def test_asking_mixes_answers_and_scores_in_order():
  model = jaxpeft.load("embedded", dtype="float32")
  ask = LocalAsk(model.transformer, model.params, model.tokenizer, 8)
  prompt = "Question: 12+13?\nAnswer:"
  replies = ask([
    Request(prompt, " 12+13=<<12+13=25>>25.\n#### 25"),
    Request(prompt),
    Request("Question: 2+3?\nAnswer:", " 7"),
    Request(prompt, " 12+13=<<12+13=26>>26.\n#### 26"),
  ])  # fmt: skip
  right, free, other, wrong = replies
  assert free.logprob is not None
  assert free.logprob < 0
  assert free.text == model.generate([prompt], 8)[0]
  assert right.text.endswith("25")
  assert right.logprob > -0.1 > -5 > wrong.logprob
  assert (other.prompt_tokens, other.tokens) == (11, 2)
  before, own = completion_ids(model.tokenizer, prompt, right.text)
  assert before + own == model.tokenizer.encode(prompt + right.text, bos=True)
  assert right.tokens == len(own)


def test_a_conversation_is_asked_through_the_chat_template():
  model = jaxpeft.load("embedded", dtype="float32")
  words = model.tokenizer
  source = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
  )
  chat = Tokenizer(**(vars(words) | dict(chat_template=source)))
  parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "2?"}]
  talk = Conversation([dict(role="user", content=parts)])
  text = "user: 1+2?\nassistant:"
  assert str(talk) == "user: 1+2?"
  assert completion_ids(chat, talk, "3")[0] == words.encode(text)
  bare = Tokenizer(**(vars(words) | dict(chat_template=None)))
  with pytest.raises(InputError, match="no chat template"):
    LocalAsk(model.transformer, model.params, bare)([Request(talk)])


def test_a_completion_has_the_tokens_that_training_gives_it():
  toy = tokenizer.load(assets.TINY)
  letters = {letter: i for i, letter in enumerate("▁a=bc")}
  core = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
  core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
  first = Tokenizer(**(vars(toy) | dict(core=core, add_bos=False)))
  assert first.encode("bc") == [0, 3, 4], "a text of its own starts with a space"
  assert completion_ids(first, "a=", "bc") == ([0, 1, 2], [3, 4])
  for words in (first, toy):
    row = dict(prompt="a=", completion="bc")
    (example,) = encode.encode([row], words, 9, "completion").examples
    before, own = completion_ids(words, row["prompt"], row["completion"])
    assert [*before, *own] == example.tokens[:-1].tolist()  # without the end token


def test_what_cannot_be_scored_is_refused():
  model = jaxpeft.load("embedded", dtype="float32")
  ask = LocalAsk(model.transformer, model.params, model.tokenizer)
  with pytest.raises(InputError, match="no tokens to score"):
    ask([Request("a", "")])
  for prompts, given, message in (
    ([[]], [[[3]]], "prompt 0 has no tokens"),
    ([[5] * 1020], [[[3] * 10]], "1024 positions"),
    ([[5]], [[[9999]]], "token 9999"),
  ):
    with pytest.raises(InputError, match=message):
      score.score(model.transformer, model.params, prompts, given)


def test_it_says_whether_greedy_gives_a_completion():
  model = jaxpeft.load("embedded", dtype="float32")
  net, params = model.transformer, model.params
  prompts = [model.tokenizer.encode(f"Question: {x}+13?\nAnswer:") for x in (2, 41)]
  new = decode.generate(net, params, prompts, 9)
  other = [[row[:4], row, [*row[:3], row[3] ^ 1, *row[4:]]] for row in new]
  got = score.with_greedy(net, params, prompts, other)
  assert [[greedy for _, greedy in some] for some in got] == [[True, True, False]] * 2
  assert all(some[0][0] > some[1][0] > some[2][0] for some in got)


def test_long_completions_are_scored_piece_by_piece(monkeypatch):
  model = jaxpeft.load("embedded", dtype="float32")
  net, params = model.transformer, model.params
  rng = np.random.default_rng(0)
  prompts, new = rng.integers(3, 500, (2, 5)).tolist(), rng.integers(3, 500, (2, 1, 61))
  whole = score.score(net, params, prompts, new.tolist())
  score.logprobs.clear_cache()
  monkeypatch.setattr(score, "_NUMBERS", 5 * 2 * 512)
  pieces = score.score(net, params, prompts, new.tolist())
  np.testing.assert_allclose(pieces, whole, rtol=1e-6)
  logits = jax.make_jaxpr(score.logprobs, static_argnums=0)(
    net, params, *(np.zeros(x, int) for x in ((2, 16), 2, (2, 1, 61), (2, 1)))
  )
  assert "f32[2,60,512]" not in str(logits)
  score.logprobs.clear_cache()


def test_a_completion_may_end_one_token_past_the_last_position():
  model = jaxpeft.load("embedded", dtype="float32")
  net, params, prompt = model.transformer, model.params, [5] * 1000
  score.score(net, params, [prompt, [7]], [[[3] * 25], [[4] * 30]])
  with pytest.raises(InputError, match="1000 tokens and a completion of 26 exceed"):
    score.score(net, params, [prompt], [[[3] * 26]])
