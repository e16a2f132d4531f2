"""A model as notebooks use it: architecture, parameters and tokenizer in one value."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxpeft import assets
from jaxpeft.adapters import select
from jaxpeft.caches import compiled
from jaxpeft.checkpoints import hf
from jaxpeft.checkpoints.stored import StoredModel, open_model
from jaxpeft.errors import InputError, unknown
from jaxpeft.generation import decode, stream
from jaxpeft.generation.sampling import Sampling
from jaxpeft.objectives import scoring as rewards
from jaxpeft.parallel import sharding
from jaxpeft.quantization import nf4
from jaxpeft.transformer import decoder
from jaxpeft.transformer import remat as remats
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Stream, Transformer, full_rows, layer_groups
from jaxpeft.transformer.shapes import SHAPES

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Model:
  """Immutable; `replace(params=...)` gives the same model with other parameters.

  Attributes:
    transformer: the linen module, which holds the `ModelConfig`.
    params: its parameters, adapted or not; None if they live elsewhere.
    tokenizer: a `Tokenizer`.
    name: what it was loaded from.
  """

  transformer: Transformer
  params: Any
  tokenizer: Any
  name: str

  @property
  def config(self) -> ModelConfig:
    """The architecture."""
    return self.transformer.config

  def __call__(self, tokens, mask=None):
    """Logits float32[B, T, V] of tokens int[B, T].

    Args:
      tokens: token ids.
      mask: bool[B, T], False for padding on either side; None means no padding.
    Raises:
      InputError: other shapes or dtypes, or ids that are not in the vocabulary. Inside
        jit, ids are not checked.
    """
    tokens = jnp.asarray(tokens)
    mask = None if mask is None else jnp.asarray(mask)
    _check(self.config, tokens, mask)
    return _logits(self.transformer, self.params, tokens, mask)

  def generate(
    self,
    prompts,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    adapters=None,
  ) -> list[str]:
    """Texts that continue the prompts (a list of str), up to a stop token.

    Args:
      prompts: texts.
      max_new_tokens: most new tokens of a text.
      temperature, top_k, top_p: see `Sampling`.
      seed: seed of the draws.
      batch_size: most prompts at once; None is as many as memory holds.
      adapters: for each prompt the name of an attached adapter, or None for the base;
        None is the base for all.
    Raises:
      InputError: a value is wrong, or a prompt is no text.
    """
    if isinstance(prompts, str):
      raise InputError(
        f"prompts must be a list of texts, not the text {prompts[:40]!r}; give [text]"
      )
    prompts = list(prompts)
    for i, prompt in enumerate(prompts):
      if not isinstance(prompt, str):
        kind = type(prompt).__name__
        raise InputError(f"prompt {i} must be a text, not {kind}")
    if adapters is not None and len(adapters) != len(prompts):
      raise InputError(f"{len(adapters)} adapters for {len(prompts)} prompts")
    choose = adapters and (lambda p, rows: select(p, [adapters[i] for i in rows]))
    ids = [self.tokenizer.encode(p, bos=True) for p in prompts]
    sampling = Sampling(temperature, top_k, top_p)
    stops = self.tokenizer.eos_ids
    new = decode.generate(
      self.transformer,
      self.params,
      ids,
      max_new_tokens,
      stops,
      sampling,
      seed,
      batch_size,
      choose_rows=choose,
    )
    return [self.tokenizer.decode(row) for row in new]

  def stream(
    self,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> Iterator[str]:
    """Yields the text that `generate` gives for one prompt, piece by piece."""
    session = stream.Session(
      self.transformer,
      self.params,
      self.tokenizer.eos_ids,
      Sampling(temperature, top_k, top_p),
    )
    ids = self.tokenizer.encode(prompt, bos=True)
    yield from stream.text(self.tokenizer, session.tokens(ids, max_new_tokens, seed))

  def reward(self, texts, pool: str = "last", batch_size: int | None = None):
    """float32[n]: how good a reward model finds texts.

    Args:
      texts: a list of texts, or of (prompt, answer) pairs of texts. An end of text
        follows each, as in training.
      pool: the token that is scored, as `objective.pool` was in training.
      batch_size: most texts at once; None is as many as fit.
    Raises:
      InputError: the model has no reward head, or a text is none or is too long.
    """
    return np.array(
      rewards.of_texts(
        self.transformer, self.params, self.tokenizer, texts, pool, batch_size
      ),
      np.float32,
    )

  def replace(self, **changes) -> "Model":
    """The same model with other fields."""
    return dataclasses.replace(self, **changes)


def load(
  source: str = "embedded",
  dtype: str = "bfloat16",
  groups: tuple[int, ...] = (),
  remat: str = "products",
  seed: int = 0,
  quantize: str | None = None,
) -> Model:
  """A model by name.

  Args:
    source: "embedded" (a toy), a directory or hub id in Hugging Face's format, a GGUF
      file, or "init:SHAPE", a shape of `SHAPES` with random weights and the toy's
      tokenizer.
    dtype: "float32" or "bfloat16", of weights and matmuls.
    groups: layers per scan, summing to the depth; () is one scan.
    remat: what the backward pass recomputes: a key of `remat.REMAT`, or one for each
      group, separated by commas.
    seed: seed of random weights.
    quantize: "nf4" quantizes the projections to 4 bits (`nf4.NF4`) as they are read.
  Raises:
    InputError: a model that cannot be found or read, that is not supported, or that the
      mesh in force does not divide.
  """
  compiled.enable()
  transformer, stored = architecture(source, dtype, groups, remat, quantize)
  config = transformer.config
  sharding.check(config, quantized=bool(quantize))
  if source.startswith("init:"):
    params = init(transformer, seed)
    params = sharding.place(nf4.quantize_tree(params) if quantize else params)
  else:
    params = hf.load(stored.reader(), config, dtype, tuple(groups), bool(quantize))
  return Model(transformer, params, stored.tokenizer(config.eos_ids), source)


def architecture(
  source, dtype, groups=(), remat="products", quantize=None
) -> tuple[Transformer, StoredModel]:
  """(Transformer, where weights and tokenizer are stored); takes `load`'s arguments."""
  if dtype not in DTYPES:
    raise unknown("model.dtype", dtype, DTYPES)
  for name in remat.split(","):
    if name not in remats.REMAT:
      raise unknown("model.remat", name, remats.REMAT)
  if quantize not in (None, "", "nf4"):
    raise unknown("model.quantize", quantize, ("", "nf4"))
  if source.startswith("init:"):
    name = source.removeprefix("init:")
    if name not in SHAPES:
      raise unknown("shape in model.source", name, SHAPES)
    stored, config = open_model(assets.TINY), SHAPES[name]
  else:
    stored = open_model(assets.TINY if source == "embedded" else hf.find(source))
    config = stored.config
  try:
    depths = layer_groups(groups, config.depth)
  except ValueError as e:
    raise InputError(f"model.groups: {e}") from e
  try:
    remats.by_group(remat, depths)
  except ValueError as e:
    raise InputError(f"model.remat: {e}, {depths} of model.groups") from e
  return Transformer(config, tuple(groups), remat, dtype), stored


def init(transformer: Transformer, seed: int):
  """Random parameters, in the transformer's dtype, on the mesh in force."""

  @jax.jit
  def make(key):
    params = transformer.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    return sharding.stored(jax.tree.map(lambda x: x.astype(transformer.dtype), params))

  return make(jax.random.key(seed))


def shapes(config: ModelConfig, dtype: str = "bfloat16"):
  """The parameter tree of an architecture as shapes, to count and to compile with."""
  transformer = Transformer(config, dtype=dtype)
  return jax.eval_shape(functools.partial(init, transformer), 0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(transformer, params, tokens, mask):
  where = full_rows(tokens.shape)
  if mask is not None:
    segment = jnp.asarray(mask).astype(jnp.int32)
    where = Where(jnp.maximum(jnp.cumsum(segment, 1) - 1, 0), segment)
  hidden = decoder.hidden(transformer, params, Stream(tokens, where))
  return decoder.logits(transformer, params, hidden)


def _check(config: ModelConfig, tokens, mask):
  """Raises InputError unless these are token ids [B, T] of the model, with a mask."""
  if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise InputError(
      f"tokens must be ids int[B, T], not {tokens.dtype} of shape {tokens.shape}"
    )
  if mask is not None and mask.shape != tokens.shape:
    raise InputError(
      f"the mask has the shape {mask.shape}, the tokens have {tokens.shape}"
    )
  if isinstance(tokens, Tracer) or not tokens.size:
    return
  least, most = int(tokens.min()), int(tokens.max())
  if least < 0 or most >= config.vocab_size:
    raise InputError(
      f"the token {least if least < 0 else most} is not in the vocabulary; the model's "
      f"ids are 0 to {config.vocab_size - 1}"
    )
