"""One program on one device and on a mesh: same numbers, and what travels."""

import re

import jax
import numpy as np
import optax
import pytest

import jaxpeft
from jaxpeft import model, tree
from jaxpeft.errors import InputError
from jaxpeft.objectives import Selection, Supervised, token_selection
from jaxpeft.parallel import sharding
from jaxpeft.training import step as training
from jaxpeft.transformer import shapes
from tests.support.meshes import CONFIG, LINEARS, METHODS, adapted, make_mesh

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (2, 4, 1)]


def batches(count, rows=8, length=32):
  """Random tokens; rows differ in how much of them is supervised, and is padding."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    ids = rng.integers(3, 64, (rows, length)).astype(np.int32)
    length_of = rng.integers(length // 2, length + 1, (rows, 1))
    there = np.arange(length) < length_of
    batch = dict(
      tokens=ids * there,
      targets=np.roll(ids, -1, 1) * there,
      weights=(there & (rng.random(ids.shape) < 0.7)).astype(np.float32),
      position=np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
      segment=there.astype(np.int32),
    )
    yield training.split(batch, 1)


def train(transformer, params, selection=None, steps=5):
  """(losses, theta, programs compiled) after SGD, on the mesh in force."""
  tx = optax.sgd(0.01)
  params = sharding.place(params)
  split = tree.partition(params, tree.trainable_mask(params))
  state, frozen = training.init_state(split[0], tx), split[1]
  objective = Supervised(selection=selection or Selection())
  step = training.make_step(transformer, tx, objective, seed=1)
  found = []
  for batch in batches(steps):
    state, metrics = step(state, frozen, sharding.place_batch(batch))
    found.append(float(metrics["loss"]))
  theta = jax.tree.map(np.asarray, state.trainable)
  return np.array(found), theta, step._cache_size()


def compare(transformer, params, mesh, selection=None):
  want, theta, _ = train(transformer, params, selection)
  with jax.set_mesh(mesh):
    got, sharded, compiled = train(transformer, params, selection)
  assert compiled == 1
  np.testing.assert_allclose(got, want, rtol=1e-5)
  start = tree.partition(params, tree.trainable_mask(params))[0]
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), theta, start)
  largest = max(jax.tree.leaves(moved))
  assert largest > 1e-6
  for a, b in zip(jax.tree.leaves(theta), jax.tree.leaves(sharded), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * largest)


# Each pair of these choices once; all of them together are exhaustive.
SOME = [
  ("LoRA", None, 1.0, (8, 1, 1)),
  ("LoRA", "nf4", 0.25, (2, 2, 2)),
  ("SVFT", None, 0.25, (1, 8, 1)),
  ("SVFT", "nf4", 1.0, (1, 1, 8)),
  ("SVFT-nf4", "nf4", 0.25, (2, 2, 2)),
  ("LoRA-XS", "nf4", 1.0, (2, 4, 1)),
  ("PiSSA", None, 1.0, (2, 2, 2)),
]
ALL = [
  (method, quantize, fraction, sizes)
  for method in METHODS
  for quantize in (None, "nf4")
  for fraction in (1.0, 0.25)
  for sizes in MESHES
]


@pytest.mark.parametrize(("method", "quantize", "fraction", "sizes"), SOME)
def test_a_mesh_trains_as_one_device(method, quantize, fraction, sizes):
  selection = token_selection.Selection(fraction)
  compare(*adapted(method, quantize), make_mesh(sizes), selection)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("method", "quantize", "fraction", "sizes"), ALL)
def test_every_mesh_trains_as_one_device(method, quantize, fraction, sizes):
  selection = token_selection.Selection(fraction)
  compare(*adapted(method, quantize), make_mesh(sizes), selection)


@pytest.mark.parametrize(
  "remat", ["none", pytest.param("layer", marks=pytest.mark.slow), "segments"]
)
def test_tokens_cut_between_layers_train_as_one_device(remat):
  compare(*adapted("LoRA", "nf4", remat), make_mesh((1, 2, 4), sequence=True))


def gathers(text):
  """[(dtype, numbers)] of the all-gathers in a compiled program."""
  found = re.findall(r"= \(?(\w+)\[([\d,]*)\][^\n]* all-gather(?:-start)?\(", text)
  return [
    (kind, int(np.prod([int(n) for n in shape.split(",") if n], dtype=int)))
    for kind, shape in found
  ]


GATHERS = [
  ("LoRA", "none", (1, 8, 1)),
  ("LoRA", "products", (2, 2, 2)),
  ("LoRA", "layer", (1, 8, 1)),
  ("SVFT-nf4", "products", (2, 2, 2)),
]
MORE = [
  ("LoRA", "none", (2, 2, 2)),
  ("LoRA", "products", (1, 8, 1)),
  ("LoRA", "layer", (2, 2, 2)),
]


@pytest.mark.parametrize(
  ("method", "remat", "sizes"),
  [*GATHERS, *(pytest.param(*x, marks=pytest.mark.slow) for x in MORE)],
)
def test_weights_in_4_bits_are_gathered_in_4_bits(method, remat, sizes):
  transformer, params = adapted(method, "nf4", remat)
  least = 128 * 128 // 2  # of a weight's codes in the smallest projection
  with jax.set_mesh(make_mesh(sizes)):
    params = sharding.place(params)
    split = tree.partition(params, tree.trainable_mask(params))
    tx = optax.adam(1e-3)
    state = training.init_state(split[0], tx)
    step = training.make_step(transformer, tx)
    batch = sharding.place_batch(next(batches(1)))
    text = step.lower(state, split[1], batch).compile().as_text()
  found = gathers(text)
  codes = [n for kind, n in found if kind == "u8" and n >= least // sizes[2]]
  assert len(codes) >= 7, "or the test does not see the gathers"
  depth, width, ff = CONFIG.depth, CONFIG.width, CONFIG.ff
  weights = {depth * width * width, depth * width * ff, width * width, width * ff}
  weights |= {n // sizes[2] for n in weights}
  embeddings = {transformer.config.vocab_size * width // ways for ways in sizes}
  floats = [n for kind, n in found if kind in ("f32", "bf16", "f16")]
  assert not [n for n in floats if n in weights - embeddings], found


def test_theta_and_moments_are_in_pieces_too():
  _, params = adapted("SVFT")
  with jax.set_mesh(make_mesh((1, 4, 2))):
    placed = sharding.place(params)
    state = training.init_state(
      tree.partition(placed, tree.trainable_mask(placed))[0],
      optax.adam(1e-3),
    )
  q = placed["layers_0"]["attn"]["q"]
  assert q.frozen["u"].sharding.spec[1:] == ("fsdp",)
  assert q.frozen["vt"].sharding.spec[1:] == ("fsdp", "tensor")
  lora = sharding.shardings(adapted("LoRA")[1], make_mesh((1, 4, 2)))
  a = lora["layers_0"]["attn"]["q"].theta["a"]
  assert a.spec[1:] == ("fsdp",)
  assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    (dict(data=3, fsdp=1, tensor=1), None),
    (dict(data=3, fsdp=-1, tensor=1), r"data=3.*does not fit into 8 devices"),
    (dict(data=-1, fsdp=-1, tensor=1), "one may be -1"),
    (dict(data=0, fsdp=1, tensor=1), "at least 1"),
    (dict(data=16, fsdp=1, tensor=1), "16 does not fit into 8"),
  ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(sizes, message):
  if message is None:
    assert sharding.mesh(**sizes).size == 3
    return
  with pytest.raises(InputError, match=message):
    sharding.mesh(**sizes)


def test_dimensions_that_a_mesh_does_not_divide_are_named():
  config = shapes.SHAPES["llama2-7b"]
  with jax.set_mesh(make_mesh((1, 1, 8))):
    sharding.check(config, 1, 2048)
    with pytest.raises(InputError, match=r"tensor = 8.*feed-forward.*11008.*1, 2, 43"):
      sharding.check(config, 1, 2048, quantized=True)
  with jax.set_mesh(make_mesh((2, 4, 1))):
    with pytest.raises(InputError, match=r"mesh.fsdp = 8.*batch_size.*12.*1, 2"):
      sharding.check(config, 12, 2048)
  with jax.set_mesh(make_mesh((1, 1, 8), sequence=True)):
    with pytest.raises(InputError, match=r"mesh.tensor = 8.*max_tokens, 100"):
      sharding.check(config, 8, 100)


@pytest.mark.parametrize(
  "method", [pytest.param("SVFT", marks=pytest.mark.slow), "SVFT-nf4", "PiSSA", "LoRA"]
)
def test_each_device_starts_some_layers_and_the_start_is_the_same(method):
  transformer, want = adapted(method)
  mesh = make_mesh((1, 4, 2))
  with jax.set_mesh(mesh):
    params = sharding.place(model.init(transformer, 0))
    got = jaxpeft.adapt(params, {LINEARS: METHODS[method]}, jax.random.key(0))
  places = tree.flatten(sharding.shardings(got, mesh))
  want = tree.flatten(want)
  for path, leaf in tree.flatten(got).items():
    # The same draws and decompositions, up to the last bit of a product or erf.
    np.testing.assert_allclose(leaf, want[path], rtol=0, atol=1e-7, err_msg=path)
    assert leaf.sharding.is_equivalent_to(places[path], leaf.ndim), path
