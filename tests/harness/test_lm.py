"""Models in lm-evaluation-harness: its numbers are ours, and those of its own model.

Offline: the tasks are files of the test, and no data is downloaded.
"""

import dataclasses
import json
import math
import pathlib
import types

import jax
import numpy as np
import pytest
import tokenizers

import jaxpeft
from jaxpeft.commands import lm_eval as command
from jaxpeft.data import sources
from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate, shots, tasks
from jaxpeft.generation import ends, score
from jaxpeft.generation.ask import LocalAsk, Reply
from jaxpeft.harness import opened

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install -e '.[eval]'")

from lm_eval.tasks import TaskManager  # noqa: E402

from jaxpeft.harness import lm  # noqa: E402

GSM8K = """
task: gsm8k_local
dataset_path: json
dataset_kwargs: {cache_dir: FOLDER/cache, data_files: {train: FOLDER/train.jsonl, test: FOLDER/test.jsonl}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
generation_kwargs: {until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0}
num_fewshot: 5
filter_list:
  - name: strict-match
    filter:
      - {function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}
      - {function: take_first}
  - name: flexible-extract
    filter:
      - {function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
      - {function: take_first}
"""  # noqa: E501  of lm_eval's tasks/gsm8k/gsm8k.yaml, with files for the data
BYTES = """
task: bytes_local
dataset_path: json
dataset_kwargs: {cache_dir: FOLDER/cache, data_files: {test: FOLDER/test.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{answer}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""


def evaluated(folder, text, model, rows=(), train=(), **options):
  """What the harness measures of a model on a task."""
  folder = pathlib.Path(folder)
  (folder / "task.yaml").write_text(text.replace("FOLDER", str(folder)))
  for name, some in (("test", rows), ("train", train)):
    lines = [json.dumps(x) + "\n" for x in some]
    (folder / f"{name}.jsonl").write_text("".join(lines))
  manager = TaskManager(include_path=str(folder), include_defaults=False)
  name = text.split()[1]
  found = lm_eval.simple_evaluate(
    model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **options
  )
  return found["results"][name], found["samples"][name]


@pytest.fixture(scope="module")
def toy():
  return jaxpeft.load("embedded", dtype="float32")


def request(*args):
  return types.SimpleNamespace(args=args)


FORMS = (
  "{answer}",
  " The answer is {n}.",
  " so ${n} in total",
  " #### {n}.00",
  " {n} apples, then 3 more",
  " none",
  " #### {n}\nTherefore 99",
  " **{n}**\n\nQuestion: 7?\nAnswer: #### {n}",
)


@pytest.mark.parametrize("count", [0, 5])
def test_gsm8k_gives_the_accuracy_of_eval_py_on_the_same_answers(
  count, toy, tmp_path, monkeypatch
):
  train = sources.embedded("one_step/train")[:40]
  rows = sources.embedded("one_step/test")[:27]
  texts = {}
  for i, x in enumerate(rows):
    n = x["answer"].split("#### ")[1]
    texts[x["question"]] = FORMS[i % 8].format(answer=x["answer"], n=n)

  def answer(prompt):
    return texts[prompt.rsplit("Question: ", 1)[1].split("\nAnswer:")[0]]

  harness, ours = [], []

  def generated(self, prompts, options):
    harness.extend(prompts)
    return [ends.before(answer(x), options["until"]) for x in prompts]

  def ask(requests):
    ours.extend(x.prompt for x in requests)
    return [Reply(answer(x.prompt), 1, 1) for x in requests]

  monkeypatch.setattr(lm.Lm, "_generated", generated)
  theirs, _ = evaluated(
    tmp_path, GSM8K, lm.Lm(model=toy), rows, train, num_fewshot=count
  )
  task, found = tasks.make("gsm8k"), shots.draw(train, rows, count)
  got = evaluate.answers(ask, rows, task, "strict", found)
  assert harness == ours
  assert 0 < got.accuracy["strict"] < got.accuracy["flexible"] < 1
  assert theirs["exact_match,strict-match"] == got.accuracy["strict"]
  assert theirs["exact_match,flexible-extract"] == got.accuracy["flexible"]


def test_the_harness_gets_the_texts_that_eval_py_gets(toy, tmp_path):
  rows = sources.embedded("one_step/test")[:6]
  model = lm.Lm(model=toy, max_gen_toks=24, batch_size=4)
  scores, samples = evaluated(tmp_path, GSM8K, model, rows, rows, num_fewshot=0)
  ask = LocalAsk(toy.transformer, toy.params, toy.tokenizer, 24)
  got = evaluate.answers(ask, rows, tasks.make("gsm8k"))
  assert scores["exact_match,strict-match"] == got.accuracy["strict"]
  texts = [x["resps"][0][0] for x in samples if x["filter"] == "strict-match"]
  assert texts == [x["text"] for x in got.records]


def bytes_model():
  """A model of the toy's architecture that knows nothing: 256 bytes, all alike."""
  toy = jaxpeft.load("embedded", dtype="float32")
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(
    tokenizers.models.BPE({x: i for i, x in enumerate(letters)}, [])
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  core.decoder = tokenizers.decoders.ByteLevel()
  words = Tokenizer(core, {}, False, None, None, (10,), None, {})
  params = jax.tree.map(lambda x: 0 * x, toy.params)
  params["embed"] = params["embed"][:256]
  net = toy.transformer
  net = net.clone(config=dataclasses.replace(net.config, vocab_size=256))
  return toy.replace(transformer=net, params=params, tokenizer=words)


def test_a_model_that_knows_nothing_needs_8_bits_for_a_byte(tmp_path):
  rows = [dict(answer="é" * n + "ab\n c") for n in (1, 9, 80)]  # also over max_length
  model = lm.Lm(model=bytes_model(), max_length=16)
  scores, _ = evaluated(tmp_path, BYTES, model, rows)
  assert scores["bits_per_byte,none"] == pytest.approx(8, abs=1e-5)
  (one,) = model.loglikelihood_rolling([request("x" * 100)])
  assert one == pytest.approx(-100 * math.log(256), rel=1e-6)
  assert model.loglikelihood_rolling([request("")]) == [0]


def test_a_long_text_is_scored_in_windows_that_overlap_least(toy):
  """Each token once; the first after the prefix, the last ones with a full window."""
  text = "Question: Ann has 23 apples and buys 12 more?"
  ids = toy.tokenizer.encode(text, bos=True)
  ids, most = ids[:19], 8
  model = lm.Lm(model=toy, max_length=most)
  model.tok_encode = lambda _: ids
  (got,) = model.loglikelihood_rolling([request(text)])
  want = 0.0
  for first, last in ((0, 8), (8, 16), (16, 19)):
    read = [toy.tokenizer.bos_id, *ids][max(0, last - most) : last]
    logp = jax.nn.log_softmax(toy(np.array([read])))[0]
    want += sum(float(logp[i - last, ids[i]]) for i in range(first, last))
  assert got == pytest.approx(want, abs=1e-4)


def test_long_contexts_lose_their_start_and_continuations_are_scored_whole(toy):
  model, net, params = lm.Lm(model=toy, max_length=12), toy.transformer, toy.params
  context = toy.tokenizer.encode("Question: Ann has 23 apples and buys 12 more?" * 2)
  own = toy.tokenizer.encode(" She has 35")
  assert len(context) > 20
  assert len(own) > 3
  (got,) = model._loglikelihood_tokens([(("a", "b"), context, own)])
  read = [*context, *own][-13:-1]
  logp = jax.nn.log_softmax(toy(np.array([read])).astype(float))[0]
  want = sum(float(logp[len(read) - len(own) + i, t]) for i, t in enumerate(own))
  assert got[0] == pytest.approx(want, abs=1e-4)
  with pytest.raises(InputError, match="a continuation of 13 tokens cannot be scored"):
    model._loglikelihood_tokens([(("a", "b"), context, context[:13])])
  with pytest.raises(InputError, match="a continuation of 0 tokens"):
    model._loglikelihood_tokens([(("a", "b"), context, [])])
  at_end = score.score(net, params, [context[:1]], [[context[1:]]])
  (rolled,) = lm.Lm(model=toy)._loglikelihood_tokens(
    [((None, None), context[:1], context[1:])]
  )
  assert rolled[0] == pytest.approx(at_end[0][0])


def test_choices_of_a_context_share_its_prefill(toy, monkeypatch):
  asked = []
  whole = score.with_greedy

  def seen(net, params, prompts, completions, *more):
    asked.append((len(prompts), sorted(map(len, completions))))
    return whole(net, params, prompts, completions, *more)

  monkeypatch.setattr(score, "with_greedy", seen)
  pairs = [request(f"Q {i}:", x) for i in (1, 2) for x in (" A", " B", " C", " A")]
  got = lm.Lm(model=toy).loglikelihood([*pairs, request("", "A b"), request("a ", "b")])
  assert sum(count for count, _ in asked) == 4  # contexts
  assert got[0] == got[3] != got[1]
  assert got[0] != got[4]
  alone = [lm.Lm(model=toy).loglikelihood([x])[0][0] for x in pairs[:3]]
  np.testing.assert_allclose([x[0] for x in got[:3]], alone, atol=1e-4)


def test_texts_end_at_the_first_stop_text(toy):
  assert ends.before("a b\n\nc b", ["", "b", "\n\n"]) == "a "
  prompts = ["Question: 2+3?\nAnswer:", "Question: 12+13?\nAnswer:"]
  model = lm.Lm(model=toy, max_gen_toks=24)
  free = model.generate_until([request(x, dict(until=[])) for x in prompts])
  assert free == toy.generate(prompts, 24)
  assert all("####" in x for x in free)
  some = [request(x, dict(until=["####"])) for x in prompts]
  assert model.generate_until(some) == [x.split("####")[0] for x in free]
  mixed = [request(prompts[0], dict(until="##", max_gen_toks=3)), *some]
  short, *rest = model.generate_until(mixed)
  assert free[0].startswith(short)
  assert len(short) < 8
  assert rest == [x.split("####")[0] for x in free]


def test_sampling_follows_the_tasks_options(toy, capsys):
  model = lm.Lm(model=toy, max_gen_toks=12)
  options = dict(until=[], do_sample=True, temperature=1.5, top_k=40, num_beams=1)
  texts = model.generate_until([request("Question:", options)] * 6)
  assert len(set(texts)) > 3
  assert capsys.readouterr().err.count("option num_beams is unknown here") == 1
  greedy = model.generate_until([request("Question:", options | dict(do_sample=False))])
  assert greedy == toy.generate(["Question:"], 12)


def test_contexts_make_room_for_the_answer(toy, capsys):
  model = lm.Lm(model=toy, max_length=20, max_gen_toks=8)
  long = "Question: Ann has 23 apples and buys 12 more?\nAnswer:"
  (text,) = model.generate_until([request(long, dict(until=[]))])
  ids = toy.tokenizer.encode(long, bos=True)
  new = jaxpeft.generation.decode.generate(
    toy.transformer, toy.params, [ids[-12:]], 8, toy.tokenizer.eos_ids
  )
  assert text == toy.tokenizer.decode(new[0])
  assert "1 contexts lose tokens at their start: over 12 tokens" in (
    capsys.readouterr().err
  )
  with pytest.raises(InputError, match="max_gen_toks 20 leaves no room"):
    model.generate_until([request(long, dict(until=[], max_gen_toks=20))])


def test_a_text_gets_one_beginning_token(toy):
  first = toy.tokenizer.core.id_to_token(toy.tokenizer.bos_id)
  model, ids = lm.Lm(model=toy), toy.tokenizer.encode("ab")
  bos = [toy.tokenizer.bos_id] * toy.tokenizer.add_bos
  assert model.tok_encode("ab") == bos + ids
  assert model.tok_encode("ab", add_special_tokens=False) == ids
  assert model.tok_encode(first + "ab") == [toy.tokenizer.bos_id, *ids]
  assert model.prefix_token_id == toy.tokenizer.bos_id
  assert model.eot_token_id == toy.tokenizer.eos_ids[0]


CHATML = (
  "{% for m in messages %}{% if m.role == 'system' and messages|length == 4 %}"
  "{{ raise_exception('no system') }}{% endif %}"
  "<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_conversations_are_worded_by_the_template(toy, capsys):
  words = dataclasses.replace(toy.tokenizer, chat_template=CHATML)
  model = lm.Lm(model=toy.replace(tokenizer=words))
  talk = [dict(role="user", content=" a "), dict(role="assistant", content=" The b ")]
  assert model.apply_chat_template(talk[:1]) == "<|user|>a\n<|assistant|>"
  assert model.apply_chat_template(talk, add_generation_prompt=False) == (
    "<|user|>a\n<|assistant|>The b"
  )
  assert model.chat_template(True) == CHATML
  assert model.chat_template(False) is None
  system = dict(role="system", content="s")
  assert model.apply_chat_template([system, talk[0]]) == (
    "<|system|>s\n<|user|>a\n<|assistant|>"
  )
  without = model.apply_chat_template([*talk, talk[0]])
  assert model.apply_chat_template([system, *talk, talk[0]]) == without
  assert "takes no system prompt" in capsys.readouterr().err
  bare = toy.replace(tokenizer=dataclasses.replace(words, chat_template=None))
  with pytest.raises(InputError, match="no chat template"):
    lm.Lm(model=bare).apply_chat_template(talk[:1])
  with pytest.raises(InputError, match="no chat template 'tool'"):
    model.chat_template("tool")


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({}, "give --model_args ckpt=runs/NAME or --model_args model=NAME"),
    (dict(ckpt="a", model="b"), "give --model_args ckpt"),
    (dict(ckpt="a", dtype="float32"), "a run has its own dtype"),
    (dict(model="a", max_gen_tok=3), "Did you mean 'max_gen_toks'"),
    (dict(model="a", batch_size="many"), "batch_size 'many' of --model_args is no"),
    (dict(model="a", max_length=1), "max_length 1 of --model_args is below 2"),
  ],
)
def test_wrong_arguments_are_named(given, message):
  with pytest.raises(InputError, match=message):
    lm.Lm(**given)


def test_batches_follow_the_flags():
  size = lambda **x: opened.options(dict(model="a", **x)).batch_size  # noqa: E731
  assert [size(), size(batch_size="auto:4"), size(batch_size=3)] == [0, 0, 3]
  assert size(batch_size="auto", max_batch_size=16) == 16
  assert size(batch_size=4, max_batch_size=16) == 4


def test_the_commands_words_go_to_the_harness():
  more = ["--model", "jaxpeft", "--batch_size", "auto"]
  assert command.words(["--tasks", "x"]) == ["run", "--tasks", "x", *more]
  assert command.words(["run", "--tasks", "x"]) == ["run", "--tasks", "x", *more]
  given = ["run", "--model=hf", "-b", "3"]
  assert command.words(given) == given
  assert command.words(["ls", "tasks"]) == ["ls", "tasks"]
  assert command.words(["run", "--", "--help"]) == ["run", "--help"]
