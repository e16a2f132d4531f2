"""Shots: chosen and worded as lm-evaluation-harness does it, and shown everywhere."""

import json
import random
import subprocess
import sys

import pytest

import jaxpeft
from jaxpeft import config as configs
from jaxpeft import options, run_data
from jaxpeft.data import sources
from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate, kept, problems, shots, tasks
from jaxpeft.generation.ask import Conversation, LocalAsk, Reply, Request
from jaxpeft.training import report

# Of lm-evaluation-harness's gsm8k, as it was run: the rows of the training file that
# are shown before the first four problems, with 5 shots.
HARNESS = [
  [6374, 3610, 957, 61, 742],
  [7462, 6610, 4769, 286, 5501],
  [5677, 687, 806, 6279, 2905],
  [1939, 142, 252, 6461, 129],
]
GSM8K = tasks.make("gsm8k")


def row(number, **more):
  return dict(question=f"What is {number}?", answer=f"It is\n#### {number}", **more)


ROWS = [row(i) for i in range(7473)]


def numbers(found):
  return [[ROWS.index(x) for x in some] for some in found]


def test_the_shots_are_those_of_the_harness():
  asked = [row(-1 - i) for i in range(4)]
  assert numbers(shots.draw(ROWS, asked, 5)) == HARNESS
  assert numbers(shots.draw(ROWS, asked[:2], 5)) == HARNESS[:2]
  assert shots.draw(ROWS, asked, 0) == [[]] * 4


@pytest.mark.parametrize("same", [False, True])
def test_the_harness_itself_chooses_them(same):
  samplers = pytest.importorskip(
    "lm_eval.api.samplers", reason="lm_eval is not installed: pip install -e '.[eval]'"
  )
  pool = ROWS[:12]
  asked = pool[3:11] if same else [row(-i) for i in range(1, 9)]
  theirs = samplers.ContextSampler(pool, rnd=shots.SEED)
  want = [theirs.sample(5, eval_doc=x if same else None) for x in asked]
  assert shots.draw(pool, asked, 5, same) == want


def test_a_problem_is_never_its_own_shot():
  rng, pool = random.Random(0), ROWS[:6]
  for same in (False, True):
    asked = rng.choices(pool, k=40)
    for problem, some in zip(asked, shots.draw(pool, asked, 5, same), strict=True):
      assert problem not in some
      assert len({x["question"] for x in some}) == 5


def test_too_few_rows_are_refused():
  with pytest.raises(InputError, match=r"eval.shots 7: there are only 6 rows"):
    shots.draw(ROWS[:6], ROWS[8:9], 7)
  with pytest.raises(InputError, match="only 6 rows"):
    shots.draw(ROWS[:6], ROWS[:1], 6, same=True)
  with pytest.raises(InputError, match="only 5 rows besides the problem"):
    shots.draw(ROWS[:6], ROWS[:1], 6)


def config(tmp_path=None, train=None, held=None, **e):
  """A config on files of rows, or on the toy."""
  c = configs.base().unlock()
  for name, rows in (("train", train), ("eval", held)):
    if rows is not None:
      c.data[name] = str(tmp_path / f"{name}.jsonl")
      text = "".join(json.dumps(x) + "\n" for x in rows)
      (tmp_path / f"{name}.jsonl").write_text(text)
  c.eval.update(e)
  return c


def test_a_run_takes_them_from_the_rows_that_training_may_use(tmp_path):
  asked = [row(-1 - i) for i in range(3)]
  c = config(tmp_path, ROWS, asked, shots=5)
  assert numbers(shots.of_run(c, GSM8K, asked)) == HARNESS[:3]
  c.data.limit = 6
  assert max(map(max, numbers(shots.of_run(c, GSM8K, asked)))) < 6
  c.eval.shots = 0
  c.data.train = "nowhere.jsonl"  # is not even opened
  assert shots.of_run(c, GSM8K, asked) == [[]] * 3
  c = config(tmp_path, ROWS[:6], shots=5)
  c.data.eval = c.data.train
  for x, some in zip(ROWS, shots.of_run(c, GSM8K, ROWS[:6]), strict=False):
    assert x not in some


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    (dict(prompt="a", completion="b"), "row 1: task gsm8k needs rows with question"),
    (dict(question="a", answer="b"), "row 1: task gsm8k scores the number behind"),
  ],
)
def test_rows_that_cannot_be_shown_are_refused_before_the_model_is_read(
  bad, message, tmp_path
):
  c = config(tmp_path, [bad], [row(1)], shots=1)
  with pytest.raises(InputError, match=f"eval.shots shows data.train, .*{message}"):
    run_data.rows(c)
  c.eval.shots = 0
  run_data.rows(c)


def test_texts_and_conversations_do_not_mix(tmp_path):
  talk = dict(messages=[dict(role=r, content=r) for r in ("user", "assistant")])
  text = dict(prompt="a", completion="b")
  for train, held, names in (
    ([talk], [text], "it is a conversation, and a problem of data.eval is a text"),
    ([text], [talk], "it is a text, and a problem of data.eval is a conversation"),
  ):
    c = config(tmp_path, train, held, shots=1, task="exact")
    with pytest.raises(InputError, match=names):
      run_data.rows(c)
  c = config(tmp_path, [talk], [talk | dict(id=1)], shots=1, task="exact")
  task = problems.task_of(c, run_data.held_out_rows(c))
  (some,) = shots.of_run(c, task, [talk | dict(id=1)])
  prompt = task.prompt(talk, some)
  assert isinstance(prompt, Conversation)
  assert [m["role"] for m in prompt.messages] == ["user", "assistant", "user"]


def test_the_answers_are_to_prompts_with_the_shots():
  asked, prompts = ROWS[-3:], []

  def ask(requests):
    prompts.extend(r.prompt for r in requests)
    return [Reply("#### 7472", 3, 9) for _ in requests]

  found = shots.draw(ROWS, asked, 2)
  got = evaluate.answers(ask, asked, GSM8K, "strict", found)
  for problem, prompt, some in zip(asked, prompts, found, strict=True):
    solved = [f"Question: {x['question']}\nAnswer: {x['answer']}\n\n" for x in some]
    assert prompt == "".join([*solved, f"Question: {problem['question']}\nAnswer:"])
  assert got.metrics()["shots"] == 2
  assert [r["prompt"] for r in got.records] == prompts
  bare = evaluate.answers(ask, asked, GSM8K)
  assert "shots" not in bare.metrics()
  assert bare.records[0]["prompt"] == "Question: What is 7470?\nAnswer:"


def test_positions_are_counted_with_the_shots():
  c = config(shots=9, max_new_tokens=40)
  tokenizer = jaxpeft.load("embedded", dtype="float32").tokenizer
  held = run_data.held_out_rows(c)[:4]
  task = problems.task_of(c, held)
  found = shots.of_run(c, task, held)
  lengths = [
    len(tokenizer.encode(task.prompt(*x))) for x in zip(held, found, strict=True)
  ]
  problems.check_positions(c, task, held, tokenizer, max(lengths) + 41, found)
  with pytest.raises(InputError, match=r"with 9 shots .* lower eval.shots"):
    problems.check_positions(c, task, held, tokenizer, max(lengths) + 20, found)
  problems.check_positions(c, task, held, tokenizer, max(lengths) // 4)


def test_kept_answers_of_a_base_depend_on_the_shots():
  model = jaxpeft.load("embedded", dtype="float32")
  ask = LocalAsk(model.transformer, model.params, model.tokenizer, 8)
  problem = row(5)
  prompts = [GSM8K.prompt(problem, some) for some in ((), ROWS[:1], ROWS[1:2])]
  assert len({kept._key(ask, [Request(x)]) for x in prompts}) == 3


def test_the_option_is_checked_and_the_result_says_it():
  c = configs.base().unlock()
  c.adapt.main = dict(name="Full", match=".*")
  c.eval.shots = -1
  with pytest.raises(InputError, match=r"eval.shots -1 is below 0"):
    options.check(c)
  final = dict(step=1, wall_s=1.0, peak_memory_bytes=1, peak_memory_is="live")
  final |= dict(base_accuracy=0.1, accuracy=0.2, accuracy_ci95=(0.1, 0.3), problems=9)
  assert "on 9 problems)" in report.result(final)
  assert "on 9 problems, 5-shot)" in report.result(final | dict(shots=5))


def test_old_configs_have_no_shots():
  old = configs.to_json(configs.base())
  del old["eval"]["shots"]
  assert configs.filled(old)["eval"]["shots"] == 0


def test_real_gsm8k_prompts(data_dir):
  train = sources.read(data_dir / "gsm8k" / "train.jsonl")
  held = sources.read(data_dir / "gsm8k" / "test.jsonl", 4)
  found = shots.draw(train, held, 5)
  assert [[train.index(x) for x in some] for some in found] == HARNESS


@pytest.mark.slow
def test_the_commands_show_shots(tmp_path):
  short = ["--config.train.steps=2", "--config.eval.limit=6", "--config.eval.shots=2"]
  short += ["--config.eval.loss_limit=8", "--config.eval.max_new_tokens=16"]
  command = [sys.executable, "train.py", "--config=configs/ia3.py", *short]
  command += [f"--workdir={tmp_path}/run"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "on 6 problems, 2-shot)" in done.stdout
  lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
  assert [json.loads(x)["prompt"].count("Question:") for x in lines] == [3] * 6
  final = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
  for flags, end, count in ((), ", 2-shot", 3), (("--shots=0",), "", 1):
    report_file = tmp_path / "report.json"
    command = [sys.executable, "eval.py", f"--ckpt={tmp_path}/run", *flags]
    done = subprocess.run(
      [*command, f"--out={report_file}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"problems of embedded:two_step/test{end}\n" in done.stdout
    found = json.loads(report_file.read_text())
    assert found["answers"][0]["prompt"].count("Question:") == count
    if not flags:
      assert found["accuracy"] == final["accuracy"]
