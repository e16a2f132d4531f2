"""A default that has changed does not change the runs that were saved before."""

import json
import re

import chex
import jax
import pytest

import jaxpeft
from jaxpeft import adapters, experiment
from jaxpeft import config as configs
from jaxpeft.training import workdir
from tests.support.methods import LINEARS


def config(**options):
  c = configs.base()
  c.adapt.main = dict(name="PiSSA", match=LINEARS, rank=4) | options
  c.adapt.more = dict(name="LoRA", match="none")
  return c.lock()


def saved(folder) -> dict:
  return json.loads((folder / "config.json").read_text())["adapt"]


def forget(folder):
  """Makes the run one of a version that did not name the iterations."""
  values = json.loads((folder / "config.json").read_text())
  del values["adapt"]["main"]["iterations"]
  (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["PiSSA", "LoRAXS"])
def test_a_run_that_did_not_name_an_option_keeps_its_default(tmp_path, name):
  c = config(name=name)
  folder = workdir.prepare(tmp_path / "run", c)
  assert saved(folder)["main"] == dict(c.adapt.main, iterations=16)
  assert saved(folder)["more"] == dict(name="LoRA", match="none")
  assert workdir.begun(folder, c).adapt.main.iterations == 16
  forget(folder)
  workdir.prepare(tmp_path / "run", c)  # the same command goes on
  for options in ({}, dict(iterations=0)):
    again = config(name=name, **options)
    workdir.prepare(tmp_path / "run", again)
    begun = workdir.begun(folder, again)
    assert begun.adapt.main.iterations == 0
    assert begun.is_locked
    rules = adapters.from_config(begun.adapt)
    assert rules[LINEARS] == getattr(jaxpeft, name)(rank=4, iterations=0)
  assert workdir.read_config(folder).adapt.main.iterations == 0
  with pytest.raises(jaxpeft.InputError, match="iterations: 0 there, 16 now"):
    workdir.prepare(tmp_path / "run", config(name=name, iterations=16))
  with pytest.raises(jaxpeft.InputError, match=re.escape("main.name: ")):
    workdir.prepare(tmp_path / "run", config(name="MiLoRA"))


def test_another_value_is_refused_and_none_is_exact(tmp_path):
  workdir.prepare(tmp_path / "run", config(iterations=4))
  workdir.prepare(tmp_path / "run", config())  # what is not named is as it was
  assert workdir.begun(tmp_path / "run", config()).adapt.main.iterations == 4
  with pytest.raises(jaxpeft.InputError, match="iterations: 4 there, 8 now"):
    workdir.prepare(tmp_path / "run", config(iterations=8))
  rules = adapters.from_config({"main": dict(name="PiSSA", match="x", iterations=None)})
  assert rules["x"].iterations is None
  with pytest.raises(jaxpeft.InputError, match="must be of type int, not 'no'"):
    adapters.from_config({"main": dict(name="PiSSA", match="x", iterations="no")})
  with pytest.raises(jaxpeft.InputError, match="must be of type int, not None"):
    adapters.from_config({"main": dict(name="PiSSA", match="x", rank=None)})


def test_an_older_run_is_opened_with_the_factors_it_was_trained_with(tmp_path):
  c = config().unlock()
  del c.adapt.more
  model = jaxpeft.load("embedded", dtype="float32")
  exact = c.copy_and_resolve_references()
  exact.adapt.main.iterations = 0
  folder = workdir.prepare(tmp_path / "run", c)
  forget(folder)
  key = jax.random.fold_in(jax.random.key(c.seed), 1)
  params = jaxpeft.adapt(model.params, adapters.from_config(exact.adapt), key)
  jaxpeft.save_adapter(params, folder / "adapter", key=key)
  found = experiment.load_run(folder)
  chex.assert_trees_all_equal(found.params, params)
  new = jaxpeft.adapt(model.params, adapters.from_config(c.adapt), key)
  at = lambda tree: tree["layers_0"]["attn"]["q"].frozen["w"]  # noqa: E731
  assert not (at(new) == at(params)).all()
