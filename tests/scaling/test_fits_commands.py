"""`scaling fit` and `scaling sensitivity`: output, files, one line for bad input."""

import json

import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.scaling import laws, points, sensitivity, spread


@pytest.fixture
def porian(data_dir):
  return data_dir / "scaling" / "porian_isoflop.csv"


def test_approach_2_writes_a_law_that_plan_reads(command, porian, tmp_path):
  law, result, plot = (tmp_path / x for x in ("law.json", "result.json", "plot.png"))
  where = "--where=config=rw/tuned/short/const/standard/val"
  status, out, _ = command(
    "fit", f"--data={porian}", where, "--approach=2", f"--out={law}",
    f"--result={result}", f"--plot={plot}", "--bootstrap=100", "--flops=1e19,1e24",
  )  # fmt: skip
  assert status == 0
  assert "95 % interval" in out
  assert "holds Chinchilla's .50" in out
  assert "1e+24 FLOPs are an extrapolation" in out
  assert "1e+19 FLOPs are" not in out
  assert plot.read_bytes().startswith(b"\x89PNG")
  found = json.loads(result.read_text())
  assert abs(found["numbers"]["a"]["value"] - 0.497) < 0.03
  assert found["budgets"][0]["c"] == 1e19
  n = found["budgets"][0]["n"]
  read = laws.read(law)
  np.testing.assert_allclose(read.law.optimum(1e19)[0], n, rtol=1e-9)
  status, out, _ = command("plan", "--flops=1e19", f"--law={law}")
  assert status == 0
  assert "approach 2" in out


def test_approach_1_draws_its_hull(command, porian, tmp_path):
  status, out, _ = command(
    "fit", f"--data={porian}", "--where=config=rw/base/long/kaplan/kaplan/train",
    "--approach=1", "--bootstrap=0", f"--plot={tmp_path / 'hull.png'}",
  )  # fmt: skip
  assert status == 0
  assert "corners of the hull" in out
  assert "interval" not in out.split("warning")[0]


def test_several_studies_in_one_file_are_noticed(command, porian):
  status, out, _ = command("fit", f"--data={porian}", "--approach=1", "--bootstrap=0")
  assert status == 0
  assert "several studies" in out
  assert "--where=COLUMN=VALUE" in out


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (["--approach=4"], "--approach=4 is not 1, 2 or 3"),
    (["--bootstrap=3"], "--bootstrap=3"),
    (["--level=2"], "--level=2"),
    (["--where=config"], "--where=config is not COLUMN=VALUE"),
    (["--where=confg=x"], "Did you mean 'config'?"),
    (["--columns=n"], "--columns: 'n' is not KEY=VALUE"),
    (["--drop_highest=1740"], "--drop_highest=1740 is not from 0 to 1739"),
    (["--flops=1e21,x"], "--flops=x is no number"),
    (["--flops=-1"], "a number that is not above 0"),
    (["--approach=1", "--frontier=hul"], "Did you mean 'hull'?"),
    (["--law=width"], "Did you mean 'width-depth'?"),
    (["--delta=0"], "--delta=0.0 is not from 1e-9"),
    (["--no_embeds"], "need a column n_no_embed"),
    (["--check=chinchila-3"], "Did you mean 'chinchilla-3'?"),
    (["--check=kaplan"], "no law of the kind"),
  ],
)
def test_bad_input_is_one_line(command, porian, words, told):
  status, out, err = command("fit", f"--data={porian}", *words)
  assert status == 2
  assert told in err
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert not out


def test_a_file_that_is_not_there(command, tmp_path):
  status, _, err = command("fit", f"--data={tmp_path / 'no.csv'}")
  assert status == 2
  assert err.count("\n") == 1


def test_one_table_gives_kaplan_and_chinchilla(command, porian, tmp_path):
  """Porian et al.: by what is counted and how it is trained, .73 and .50."""
  out_file, plot = tmp_path / "s.json", tmp_path / "s.png"
  status, out, _ = command(
    "sensitivity", f"--data={porian}", "--by=config", "--approaches=1,2",
    f"--out={out_file}", f"--plot={plot}",
  )  # fmt: skip
  assert status == 0
  found = json.loads(out_file.read_text())["outcomes"]
  a = np.array([x["a"] for x in found])
  assert len(a) == 30
  assert np.abs(a - 0.73).min() < 0.01
  assert np.abs(a - 0.50).min() < 0.01
  assert "Nearest to Kaplan's .73" in out
  assert plot.read_bytes().startswith(b"\x89PNG")


def test_embeddings_are_counted_or_not():
  """A law in N without embeddings of small models; all parameters hide its exponent."""
  width = np.repeat(128.0 * np.arange(1, 13), 12)
  depth = np.maximum(1, np.round(width / 128))
  body = 12 * depth * width**2
  n = body + 2 * 50_304 * width
  c = np.tile(np.geomspace(1e15, 1e19, 12), 12)
  d = c / 6 / body
  loss = 1.7 + 400 / body**0.34 + 410 / d**0.28
  given = points.make(n=n, d=d, loss=loss, width=width, depth=depth)
  found = sensitivity.run(given, 1e18, sensitivity.Choices(approaches=(1,)))
  by_choice = {x.choice: x for x in found if x.a is not None}
  without = by_choice["without embeddings, C = 6 N D"].a
  assert abs(without - 0.28 / 0.62) < 0.05
  assert abs(by_choice["n as given, C = 6 N D"].a - without) > 0.1
  assert "C = 6 N D + attention" in by_choice
  assert "Choices of counting" in spread.text(found, 1e18)


def test_embeddings_by_pearce_and_song():
  n = np.geomspace(1e3, 1e12, 30)
  total = n + laws.GAMMA * np.cbrt(n)
  np.testing.assert_allclose(sensitivity.without_embeddings(total, laws.GAMMA), n)


def test_bad_choices():
  given = points.make(n=np.ones(9), d=np.ones(9), loss=np.ones(9))
  with pytest.raises(InputError, match="unknown column 'x'"):
    sensitivity.run(given, 1e18, sensitivity.Choices(by="x"))
  with pytest.raises(InputError, match="not positive"):
    sensitivity.run(given, -1.0)
  with pytest.raises(InputError, match="no choice can be fitted"):
    sensitivity.run(given, 1e18, sensitivity.Choices(approaches=(1,)))


@pytest.mark.slow
def test_every_choice_of_approach_3(data_dir):
  path = data_dir / "scaling" / "chinchilla_svg_extracted_data.csv"
  found = sensitivity.run(
    points.read(path), 5.76e23, sensitivity.Choices(approaches=(3,), starts=16)
  )
  a = {x.choice: x.a for x in found}
  assert abs(a["5 highest losses dropped"] - 0.5139) < 1e-3
  assert abs(a["the law at Kaplan's sizes, without embeddings"] - 0.79) < 0.03
  careless = a["mean, stopped by scipy's usual tolerance"]
  assert abs(careless - 0.4565) < 1e-2  # of Hoffmann's published numbers
