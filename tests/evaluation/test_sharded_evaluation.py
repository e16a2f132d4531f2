"""eval.py's functions on a mesh: token by token what one device gives."""

import jax
import pytest

from jaxpeft import assets
from jaxpeft.data import encode, sources, tokenizer
from jaxpeft.evaluation import evaluate
from jaxpeft.evaluation.tasks import gsm8k
from jaxpeft.generation import decode
from jaxpeft.generation.ask import LocalAsk
from jaxpeft.generation.sampling import Sampling
from jaxpeft.objectives import Supervised
from jaxpeft.parallel import sharding
from jaxpeft.training import step as training
from tests.support.meshes import METHODS, make_mesh, trained


def evaluated(method, quantize):
  """(tokens, answers, loss) of a trained model, on the mesh in force."""
  words = tokenizer.load(assets.TINY)
  transformer, params = trained(method, quantize, vocab_size=512)
  params = sharding.place(params)
  rows = sources.read("embedded:two_step/test")[:11]  # 2 batches of 8, one not full
  texts = [words.encode(gsm8k.prompt(row), bos=True) for row in rows]
  assert {decode.bucket(len(text)) for text in texts} == {48}, "compiled once only"
  greedy, hot = Sampling(), Sampling(0.8, 40, 0.95)
  drawn = [
    decode.generate(transformer, params, texts, 12, words.eos_ids, sampling, 3, 8)
    for sampling in (greedy, hot)
  ]
  ask = LocalAsk(transformer, params, words, 12, greedy, seed=3, batch_size=8)
  answers = evaluate.answers(ask, rows, "gsm8k")
  examples = encode.encode(rows, words, 128, "completion").examples
  loss = evaluate.loss(
    training.make_eval(transformer), Supervised(), params, examples, 128, 8
  )
  return drawn, answers.records, loss


def compare(method, quantize, sizes):
  drawn, answers, loss = evaluated(method, quantize)
  with jax.set_mesh(make_mesh(sizes)):
    got = evaluated(method, quantize)
  assert len({tuple(row) for rows in drawn for row in rows}) == 22, "or all is one text"
  assert got[:2] == (drawn, answers)
  assert got[2] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
  ("method", "quantize", "sizes"),
  [
    ("LoRA", "nf4", (2, 2, 2)),
    pytest.param("SVFT", None, (1, 8, 1), marks=pytest.mark.slow),
  ],
)
def test_a_mesh_evaluates_and_generates_as_one_device(method, quantize, sizes):
  compare(method, quantize, sizes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_every_mesh_evaluates_and_generates_as_one_device(method, quantize, sizes):
  compare(method, quantize, sizes)
