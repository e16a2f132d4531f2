"""Config files, and what the command line may change and add."""

import pytest

from jaxpeft import adapters, config_file
from jaxpeft.errors import InputError

SVFT = "configs/svft_banded.py"
MILORA = "configs/milora.py"


@pytest.fixture(autouse=True)
def _root(monkeypatch, request):
  monkeypatch.chdir(request.config.rootpath)


def test_options_that_the_file_leaves_out():
  c = config_file.load(
    SVFT, ["--config.adapt.main.rank=4", "--config.optim.options.b1=0.5"]
  )
  assert adapters.from_config(c.adapt)[c.adapt.main.match].rank == 4
  assert c.optim.options.to_dict() == {"b1": 0.5}


def test_a_method_given_with_its_options_and_a_second_adapter():
  c = config_file.load(
    MILORA,
    ["--config.adapt.main.name=LoRA", "--config.adapt.main.rslora=true",
     "--config.adapt.head.match=lm_head", "--config.adapt.head.rank=2",
     "--config.adapt.head.name=LoRA"],
  )  # fmt: skip
  rules = adapters.from_config(c.adapt)
  assert rules[c.adapt.main.match] == adapters.LoRA(rank=8, alpha=8.0, rslora=True)
  assert rules["lm_head"] == adapters.LoRA(rank=2)


def test_only_what_is_named_is_added():
  assert (
    config_file.load(SVFT, []).adapt
    == config_file.load(SVFT, ["--config.seed=1"]).adapt
  )


@pytest.mark.parametrize(
  ("words", "seed", "keep"),
  [
    (["--config.seed=3", "--config.train.keep_best=false"], 3, False),
    (["--config.seed", "3", "--config.train.keep_best"], 3, True),
    (["-config.seed=1", "--config.seed=3", "--config.train.keep_best=0"], 3, False),
  ],
)
def test_ways_to_write_a_change(words, seed, keep):
  path, c, rest = config_file.command_line(
    ["train.py", "--workdir=a", "--config", SVFT, *words, "--tensor=2"]
  )
  assert (path, rest) == (SVFT, ["train.py", "--workdir=a", "--tensor=2"])
  assert (c.seed, c.train.keep_best) == (seed, keep)


@pytest.mark.parametrize("change", ["--config.adapt.main.rank=few", "--seed=3"])
def test_bad_changes(change):
  with pytest.raises(InputError, match=r"rank|--seed=3"):
    config_file.load(SVFT, [change])


def test_a_section_cannot_be_replaced_by_one_with_other_keys():
  with pytest.raises(InputError, match=r"command line: .*data"):
    config_file.load(SVFT, ["--config.data={'a': 1}"])
