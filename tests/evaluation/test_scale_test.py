"""`python -m jaxpeft scale-test` on the embedded model."""

import argparse
import json

import pytest

from jaxpeft.commands import scale_test
from jaxpeft.errors import InputError
from jaxpeft.generation import remote
from jaxpeft.generation.ask import Reply


def _args(*more, model="--model=embedded"):
  parser = argparse.ArgumentParser()
  scale_test.add(parser)
  return parser.parse_args([model, "--task=budget", *more])


@pytest.mark.slow
def test_a_run_that_was_stopped_gives_the_same_table(tmp_path, capsys):
  words = [
    "--data=embedded:budget/test", "--limit=4", "--m=2", "--n=2", "--samples=3",
    "--temperatures=1,0.7,1", f"--out={tmp_path}",
  ]  # fmt: skip
  scale_test.run(_args(*words))
  kept, result = (tmp_path / "chains.jsonl"), (tmp_path / "result.json")
  lines, first = kept.read_text().splitlines(), json.loads(result.read_text())
  assert "compute-optimal" in capsys.readouterr().out
  assert (tmp_path / "plot.png").exists()
  assert first["problems"] == 4
  kept.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
  scale_test.run(_args(*words))
  again = kept.read_text().splitlines()
  assert json.loads(result.read_text()) == first
  old, new = (sorted(map(json.loads, some), key=lambda x: str(x.get("key")))
              for some in (lines, again))  # fmt: skip
  assert len(old) == len(new)
  for a, b in zip(old, new, strict=True):
    if "reply" in a:  # log-probabilities of another batch differ in their last digits
      assert a["reply"].pop(3) == pytest.approx(b["reply"].pop(3), abs=1e-3)
    assert a == b
  with pytest.raises(InputError, match=r"\(seed differs\)"):
    scale_test.run(_args(*words, "--seed=5"))


def test_the_model_may_be_in_a_server(tmp_path, monkeypatch):
  seen = []

  def answer(self, requests):
    seen.append((self.url, self.model, len(requests)))
    return [Reply("1+2=", 4, 9, -1.0, True, 5) for _ in requests]

  monkeypatch.setattr(remote.RemoteAsk, "__call__", answer)
  words = [
    "--data=embedded:budget/test", "--limit=3", "--m=2", "--n=1", "--samples=2",
    f"--out={tmp_path}",
  ]  # fmt: skip
  server = "--server=http://127.0.0.1:9/v1"
  scale_test.run(_args(*words, "--served-model=big", model=server))
  assert {x[:2] for x in seen} == {("http://127.0.0.1:9/v1", "big")}
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["problems"] == 3
  with pytest.raises(InputError, match="served_model differs"):
    scale_test.run(_args(*words, "--served-model=other", model=server))
  with pytest.raises(InputError, match="need each other"):
    scale_test.run(_args(*words, model=server))


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--m=0", "--m=0 is not from 1"),
    ("--n=2000", "--n=2000 is above 1000"),
    ("--samples=-1", "--samples=-1 is not from 1"),
    ("--temperatures=1,x,1", "three numbers"),
    ("--temperatures=1", "three numbers"),
    ("--task=budge", "'budget'"),
    ("--answer=flexibel", "eval.answer"),
    ("--data=nowhere.jsonl", "nowhere.jsonl"),
  ],
)
def test_bad_flags(tmp_path, word, message):
  out = tmp_path / "out"
  words = ["--data=embedded:budget/test", f"--out={out}", word]
  with pytest.raises(InputError, match=message):
    scale_test.run(_args(*words))
  assert not out.exists()
