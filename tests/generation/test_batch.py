"""How many rows are decoded at once: what memory holds, without rows for nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft import model as models
from jaxpeft.errors import InputError
from jaxpeft.generation import batch, decode, memory
from jaxpeft.generation.sampling import Sampling
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer


def sizes(lengths, limit=None, budget=10**12, ways=1):
  made = batch.plan(lengths, limit, budget, lambda slots: 1000 * slots, ways)
  assert sorted(i for b in made for i in b.rows) == list(range(len(lengths)))
  assert all(len(b.rows) <= b.size for b in made)
  assert all(max(lengths[i] for i in b.rows) <= b.slots for b in made)
  return [(len(b.rows), b.size, b.slots) for b in made]


def test_150_rows_are_two_equal_batches_and_not_two_of_100():
  assert sizes([30] * 150, 100) == [(75, 75, 32)] * 2
  assert sizes([30] * 150) == [(150, 150, 32)]
  assert sizes([30] * 151, 100) == [(76, 76, 32), (75, 76, 32)]
  assert sizes([30] * 5, 100) == [(5, 5, 32)]
  assert sizes([]) == []


def test_a_few_shorter_prompts_share_the_program_of_longer_ones():
  assert sizes([30] * 75 + [40] * 75) == [(150, 150, 48)]
  # 1000 prompts would be padded by 16,000 tokens: compiling again is cheaper.
  assert sizes([40] * 75 + [30] * 1000) == [(1000, 1000, 32), (75, 75, 48)]
  long = sizes([10] * 100 + [2000])  # one outlier must not pad all others
  assert long == [(100, 100, 16), (1, 1, 2048)]


def test_memory_bounds_a_batch_and_one_row_is_always_decoded():
  assert max(size for _, size, _ in sizes([500] * 60, budget=10 * 512_000)) == 10
  assert sizes([500] * 3, budget=1) == [(1, 1, 512)] * 3
  assert sizes([500] * 60, limit=4, budget=10 * 512_000)[0] == (4, 4, 512)


def test_batches_on_a_mesh_are_cut_into_equal_pieces():
  assert {size for _, size, _ in sizes([30] * 150, 100, ways=8)} == {80}
  assert sizes([30] * 5, 100, ways=8) == [(5, 5, 32)]  # fewer rows stay whole
  assert all(size <= 100 for _, size, _ in sizes([30] * 199, 100, ways=8))


def test_generation_takes_the_plan_and_gives_rows_back_in_order(monkeypatch):
  model = jaxpeft.load("embedded", dtype="float32")
  rows = [[i, *range(3, 3 + n)] for i, n in ((10, 30), (11, 4), (12, 13), (13, 40))]
  shapes, drawn = [], []

  def repeat(net, params, tokens, length, keys, *rest):
    """Stands for decoding: each row answers with its own first token."""
    shapes.append(tokens.shape)
    drawn.extend(keys.tolist())
    return tokens[:, :1], np.ones(len(tokens), int)

  def generate(budget, **kwargs):
    shapes.clear()
    drawn.clear()
    monkeypatch.setattr(memory, "budget", lambda: budget)
    got = decode.generate(model.transformer, model.params, rows, 3, **kwargs)
    assert got == [[10], [11], [12], [13]]
    return list(shapes), {tuple(key) for key in drawn}

  monkeypatch.setattr(decode, "decode", repeat)
  whole, keys = generate(10**12)
  assert whole == [(4, 48)]
  assert len(keys) == 4
  assert generate(1) == ([(1, 48)] * 4, keys)  # the same draws, one row at a time
  assert generate(10**12, batch_size=3) == ([(2, 48)] * 2, keys)


def test_the_estimate_is_a_bound_and_near_what_xla_plans():
  rows, slots, new = 16, 512, 8
  c = ModelConfig(
    family="llama", vocab_size=20_000, width=32, depth=2, heads=8, kv_heads=8,
    head_dim=64, ff=64, max_positions=2048, tied=True,
  )  # fmt: skip
  net = Transformer(c, (1,) * c.depth, "none")
  params = jax.eval_shape(functools.partial(models.init, net), 0)
  shapes = ((rows, slots), jnp.int32), ((rows,), jnp.int32), ((rows, 2), jnp.uint32)
  arrays = [jax.ShapeDtypeStruct(*x) for x in shapes]
  lowered = decode.decode.lower(net, params, *arrays, new, (2,), Sampling(1.0, 0, 0.9))
  plan = lowered.compile().memory_analysis().temp_size_in_bytes
  assert plan > 3 * memory.SCORES, "or most of it is no part of the estimate"
  bound = rows * memory.row_bytes(net, slots, new)
  assert plan < bound + memory.SCORES
  assert bound < 4 * plan


def test_the_least_limit_of_machine_and_containers_counts(tmp_path):
  def write(name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  proc, groups = tmp_path / "proc", tmp_path / "cg"
  assert memory.host_free(proc, groups) == 4 << 30  # nothing says anything
  write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
  assert memory.host_free(proc, groups) == 2000 * 1024
  write("proc/self/cgroup", "4:cpu:/x\n3:memory:/a/b\n0::/\n")
  assert memory.host_free(proc, groups) == 2000 * 1024
  for place, limit in (("a/b", 1_500_000), ("a", 900_000)):  # version 1
    write(f"cg/memory/{place}/memory.limit_in_bytes", f"{limit}\n")
    write(f"cg/memory/{place}/memory.usage_in_bytes", "500000\n")
    write(f"cg/memory/{place}/memory.stat", "cache 7\ntotal_inactive_file 100000\n")
  assert memory.host_free(proc, groups) == 900_000 - 500_000 + 100_000
  write("proc/self/cgroup", "0::/pod\n")
  write("cg/pod/memory.max", "max\n")
  write("cg/pod/memory.current", "5\n")
  assert memory.host_free(proc, groups) == 2000 * 1024
  write("cg/memory.max", "700000")  # version 2; an outer group limits, too
  write("cg/memory.current", "100000")
  write("cg/memory.stat", "inactive_file 50000\n")
  assert memory.host_free(proc, groups) == 650_000


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (dict(batch_size=-1), "batch_size -1 is below 1"),
    (dict(max_new_tokens=0), "max_new_tokens 0"),
    (dict(prompts="abc"), "a list of texts"),
    (dict(prompts=["a", 5]), "prompt 1"),
  ],
)
def test_generate_refuses(call, message):
  model = jaxpeft.load("embedded", dtype="float32")
  with pytest.raises(InputError, match=message):
    model.generate(**(dict(prompts=["a"]) | call))


@pytest.mark.parametrize(
  ("tokens", "mask", "message"),
  [
    ([[1, 99999]], None, "token 99999"),
    ([[1, -1]], None, "token -1"),
    ([1, 2], None, r"shape \(2,\)"),
    ([[1.5, 2.0]], None, "float"),
    ([[1, 2, 3]], [[True]], r"mask .* \(1, 1\)"),
  ],
)
def test_a_model_refuses(tokens, mask, message):
  model = jaxpeft.load("embedded", dtype="float32")
  with pytest.raises(InputError, match=message):
    model(tokens, mask)


def test_a_model_may_be_traced():
  model = jaxpeft.load("embedded", dtype="float32")
  traced = jax.eval_shape(model, jax.ShapeDtypeStruct((1, 4), jnp.int32))
  assert traced.shape == (1, 4, model.config.vocab_size)
