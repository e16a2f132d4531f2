"""What users get wrong with `scaling`: one line that names the key, and no file."""

import json

import numpy as np
import pytest

from jaxpeft.caches import compiled
from jaxpeft.errors import InputError
from jaxpeft.scaling import (
  flops,
  laws,
  parametric,
  points,
  results,
  rows,
  trust,
)

N, D = (x.ravel() for x in np.meshgrid(1e7 * 3.0 ** np.arange(4), [1e9, 2e9, 4e9, 8e9]))
LOSS = laws.PUBLISHED["epoch"].law.loss(N, D)


@pytest.fixture(autouse=True)
def _own_directory(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def table(tmp_path):
  path = tmp_path / "table.csv"
  lines = [f"{n},{d},{loss}" for n, d, loss in zip(N, D, LOSS, strict=True)]
  path.write_text("\n".join(["n,d,loss", *lines]) + "\n")
  (tmp_path / "folder").mkdir()
  return path


@pytest.mark.parametrize("action", ["plan", "fit", "sensitivity"])
@pytest.mark.parametrize(
  ("word", "says"),
  [
    ("--out=none/x.json", "there is no directory none"),
    ("--out=table.csv/x.json", "there is no directory table.csv"),
    ("--out=folder", "--out=folder is a directory"),
    ("--out=", "--out= is a directory"),
    ("--out=a\0b", "--out=a"),
    ("--plot=none/x.png", "--plot=none/x.png: there is no directory none"),
    ("--plot=x.xyz", "--plot=x.xyz does not end in .png"),
  ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
  command, table, monkeypatch, action, word, says
):
  for module, name in ((points, "read"), (laws.Fitted, "draws")):
    monkeypatch.setattr(module, name, lambda *a: pytest.fail("worked"))
  given = ["--flops=1e21"] if action == "plan" else [f"--data={table}"]
  status, out, err = command(action, *given, word)
  assert (status, out) == (2, "")
  assert says in err
  assert err.count("\n") == 1


def test_one_file_for_two_things_is_refused(command, table):
  status, _, err = command("fit", f"--data={table}", "--out=x.json", "--result=x.json")
  assert status == 2
  assert "--result=x.json is the file of --out=x.json" in err


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--seed=-1"], "--seed=-1 is not from 0"),
    (["--delta=1e-300"], "--delta=1e-300 is not from 1e-9"),
    (["--approach=4"], "--approach=4"),
    (["--where=run=3"], "--where leaves 1 points"),
    (["--vocabulary=0"], "--vocabulary=0"),
    (["--drop_highest=11"], "--drop_highest=11 is not from 0 to 10"),
    (["--flops=1e400"], "--flops=1e400"),
    (["--data=none.csv"], "--data=none.csv cannot be read: No such file"),
    (["--check=none.json"], "law none.json cannot be read: No such file"),
  ],
)
def test_a_wrong_option_of_fit_names_its_flag(command, table, words, says):
  status, out, err = command("fit", f"--data={table}", *words)
  assert (status, out) == (2, "")
  assert says in err
  assert err.count("\n") == 1


@pytest.mark.parametrize("word", ["--tokens=-1", "--tokens=nan", "--tokens=1e400"])
def test_a_wrong_number_of_tokens_is_refused(command, table, word):
  status, out, err = command("flops", "--model=llama3-8b", word)
  assert (status, out) == (2, "")
  assert word in err


@pytest.mark.parametrize("word", ["--starts=0", "--context=-1", "--approaches=1.5"])
def test_a_wrong_option_of_sensitivity_names_its_flag(command, table, word):
  status, _, err = command("sensitivity", f"--data={table}", word)
  assert status == 2
  assert word in err


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("n;d;loss\n1;2;3\n", "separate the columns"),
    ("n,d,loss,loss\n1,2,3,4\n", "two columns 'loss'"),
    ("n,d,loss\n" + '1e7,1e9,3\n\n"1e7",1e9,1e300\n' * 5, "line 4: loss is '1e300'"),
    ("n,d,loss\n" + "1e300,1e9,3\n" * 9, "line 2: n is '1e300'"),
  ],
)
def test_a_table_that_is_wrong_names_its_line(tmp_path, text, says):
  (tmp_path / "bad.csv").write_text(text)
  with pytest.raises(InputError, match=says):
    points.read(tmp_path / "bad.csv")


def test_a_table_that_never_ends_is_read_up_to_a_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "_ROWS", 10)
  (tmp_path / "long.csv").write_text("n,d,loss\n" + "1e7,1e9,3\n" * 10_000)
  read = []
  monkeypatch.setattr(
    rows.csv, "DictReader",
    lambda text, **k: Counted(text, read, **k),
  )  # fmt: skip
  with pytest.raises(InputError, match="more than 10 rows"):
    points.read(tmp_path / "long.csv")
  assert len(read) == 11
  monkeypatch.setattr(rows, "_BYTES", 1000)
  with pytest.raises(InputError, match="more than 1,000 bytes"):
    points.read("/dev/zero")


class Counted(rows.csv.DictReader):
  """Counts the rows that are asked for."""

  def __init__(self, text, read, **more):
    super().__init__(text, **more)
    self._read = read

  def __next__(self):
    self._read.append(1)
    return super().__next__()


def test_more_points_than_fit_are_refused():
  size = points.MOST[3] + 1
  many = points.make(n=np.geomspace(1e6, 1e9, size), d=np.full(size, 1e9),
                     loss=np.linspace(3, 2, size))  # fmt: skip
  for approach in (1, 2, 3):
    given = many if approach == 3 else many.take(np.resize(np.arange(size), 100_001))
    with pytest.raises(InputError, match=f"of approach {approach}"):
      results.run(given, approach)


def test_parts_of_a_bootstrap_are_the_draws_of_a_whole_one():
  fit = parametric.fit(points.make(n=N, d=D, loss=LOSS), starts=8)
  rng = np.random.default_rng(3)
  drawn = rng.integers(len(N), size=(150, len(N)))
  weights = np.stack([np.bincount(row, minlength=len(N)) for row in drawn])
  expected = parametric.refit(fit, weights.astype(float))
  np.testing.assert_array_equal(parametric.bootstrap(fit, 150, 3), expected)


def test_losses_or_sizes_that_are_all_equal_are_refused():
  with pytest.raises(InputError, match="all losses are 2,"):
    parametric.fit(points.make(n=N, d=D, loss=np.full(16, 2.0)))
  falling = points.make(n=np.full(16, 1e7), d=np.arange(1, 17) * 1e9,
                        loss=np.linspace(3, 2, 16))  # fmt: skip
  with pytest.raises(InputError, match="all points have n = 1e"):
    results.run(falling, 1)


def test_copies_of_points_are_a_warning():
  one = points.make(n=N, d=D, loss=LOSS)
  assert trust.copies(one) == []
  (said,) = trust.copies(one.take([*range(16), 3, 3]))
  assert said.startswith("2 points are copies")


def test_rows_of_runs_are_those_of_each_name():
  given = points.make(n=N, d=D, loss=LOSS, run=[*"cabacabacabacabx"])
  names = np.unique(given.run)
  for name, own in zip(names, given.rows_of_runs(), strict=True):
    np.testing.assert_array_equal(own, np.flatnonzero(given.run == name))


def test_fit_and_sensitivity_use_the_cache_of_programs(command, table, monkeypatch):
  class Called(Exception):
    pass

  def enable():
    raise Called

  monkeypatch.setattr(compiled, "enable", enable)
  for action in ("fit", "sensitivity"):
    with pytest.raises(Called):
      command(action, f"--data={table}")


def test_gemstones_flops_broadcast():
  width, depth = np.array([256.0, 512.0, 1024.0]), np.array([[3.0], [8.0]])
  found = flops.gemstones(width, depth)
  each = [[flops.gemstones(w, d) for w in width] for d in depth[:, 0]]
  np.testing.assert_array_equal(found, each)
  assert flops.Shape(8, 1, 4, 2, 8, 9).attention == 8 * 2 * 16  # no kv_heads: all


def test_a_law_of_another_kind_is_refused(command, tmp_path):
  path = tmp_path / "law.json"
  path.write_text(json.dumps(dict(law="power", scale=1e13, alpha=0.1)))
  status, _, err = command("plan", "--flops=1e21", f"--law={path}", "--out=x.json")
  assert status == 2
  assert "--law" in err
  assert not (tmp_path / "x.json").exists()
