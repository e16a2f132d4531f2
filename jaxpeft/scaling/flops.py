"""FLOPs of training per token, by the counting rules of the literature.

A multiplication and an addition are two FLOPs. The backward pass of a matrix product
costs twice its forward pass: once for the gradient of the input, once for that of the
weight. So a weight costs 6 FLOPs per token in training. The rules disagree on which
weights count, and on which products without weights count:

  6n                6 N, all parameters, embeddings included [Hoffmann 2022]
  kaplan            6 N, without embeddings and output head [Kaplan 2020, section 2.1]
  kaplan-attention  the same, and 6 L T H for scores and their products [table 1 there]
  last-layer        6 N, without the input's embedding but with the head [Porian 2024]
  palm              6 N of all, and 12 L T H for attention [Chowdhery 2022, appendix B]
  hoffmann          every product, softmax, embeddings as products [appendix F there]
  gemstones         products, softmax, norms, RoPE; half of the scores; GQA; a backward
                    pass of flash attention [McLeish 2025]
  products          every matrix product that a forward pass without tricks computes,
                    times 3: GQA, gated MLPs and the experts that a token uses

with L layers, T tokens of context, and H the width of all heads together.

Sources: Kaplan et al. 2020, arXiv 2001.08361; Hoffmann et al. 2022, arXiv 2203.15556;
Chowdhery et al. 2022, arXiv 2204.02311; Porian et al. 2024, arXiv 2406.19146; McLeish
et al. 2025, arXiv 2502.06857.
"""

import dataclasses

from jaxpeft.errors import unknown

TRAINING = 3  # passes of a product: one forward, and two in the backward pass


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a transformer that decide its parameters and FLOPs.

  Attributes:
    width, depth: of the residual stream; layers.
    heads, kv_heads, head_dim: heads of queries, and of keys and values; their size.
    ff: width of the feed-forward part, of one expert if there are experts.
    vocabulary: tokens.
    gated: whether the feed-forward part has three matrices (Llama) instead of two.
    tied: whether the output head is the embedding.
    experts, experts_per_token: how many there are, and how many a token uses.
  """

  width: int
  depth: int
  heads: int
  head_dim: int
  ff: int
  vocabulary: int
  kv_heads: int = 0
  gated: bool = True
  tied: bool = False
  experts: int = 1
  experts_per_token: int = 1

  @classmethod
  def of(cls, config) -> "Shape":
    """The shape of a jaxpeft ModelConfig."""
    return cls(
      config.width, config.depth, config.heads, config.head_dim, config.ff,
      config.vocab_size, config.kv_heads, True, config.tied,
      max(config.experts, 1), max(config.experts_per_token, 1),
    )  # fmt: skip

  @property
  def attention(self) -> int:
    """Weights of the four matrices of attention in a layer."""
    keys_and_values = 2 * _kv_heads(self)
    return self.width * self.head_dim * (2 * self.heads + keys_and_values)

  @property
  def expert(self) -> int:
    """Weights of a feed-forward part, or of one expert."""
    return self.width * self.ff * (3 if self.gated else 2)

  @property
  def router(self) -> int:
    """Weights that choose the experts in a layer."""
    return self.width * self.experts if self.experts > 1 else 0

  @property
  def table(self) -> int:
    """Weights of the embedding; as many as of an output head."""
    return self.width * self.vocabulary

  @property
  def body(self) -> int:
    """Weights without embedding and head: N of Kaplan et al. Norms are left out."""
    return self.depth * (self.attention + self.experts * self.expert + self.router)

  @property
  def active(self) -> int:
    """Those of `body` that a token uses."""
    used = self.experts_per_token * self.expert
    return self.depth * (self.attention + used + self.router)

  @property
  def total(self) -> int:
    """All weights: N of Hoffmann et al. Norms and biases are left out."""
    return self.body + self.table * (1 if self.tied else 2)

  @property
  def all_heads(self) -> int:
    """The width of all query heads together."""
    return self.heads * self.head_dim


def _kv_heads(s: Shape):
  """Heads of keys and values: where `kv_heads` is 0, as many as of queries."""
  return s.kv_heads + (s.kv_heads == 0) * s.heads


def _six_n(s: Shape, _: int) -> float:
  return 6.0 * (s.total - s.body + s.active)


def _kaplan(s: Shape, _: int) -> float:
  return 6.0 * s.active


def _kaplan_attention(s: Shape, context: int) -> float:
  return 6.0 * (s.active + s.depth * context * s.all_heads)


def _last_layer(s: Shape, _: int) -> float:
  return 6.0 * (s.active + s.table)


def _palm(s: Shape, context: int) -> float:
  return _six_n(s, context) + 12.0 * s.depth * context * s.all_heads


def _hoffmann(s: Shape, context: int) -> float:
  scores = 4 * context * s.all_heads + 3 * s.heads * context
  products = 2 * (s.active + 2 * s.table) + s.depth * scores
  return float(TRAINING * products)


def _products(s: Shape, context: int) -> float:
  scores = 4 * context * s.all_heads
  return float(TRAINING * (2 * (s.active + s.table) + s.depth * scores))


def _gemstones(s: Shape, context: int) -> float:
  kv, gates = _kv_heads(s), 3 if s.gated else 2
  rotated = 3.5 * (s.heads + kv) * s.head_dim
  queries = 2.0 * (s.heads + 2 * kv) * s.width * s.head_dim + rotated
  # a causal mask halves the scores; flash attention computes them again backwards
  scores = context * (3.0 * s.all_heads + 3.0 * s.heads)
  output = 2.0 * s.width * s.all_heads
  feed = 2.0 * gates * s.width * s.ff + 10.0 * s.ff + 2.0 * s.width
  norms = 14.0 * s.width
  head = 2.0 * s.table + 7.0 * s.width
  forward = s.depth * (queries + scores + output + feed + norms) + head
  layers = 2.0 * (queries + output + feed + norms) + 2.5 * scores
  return forward + s.depth * layers + 2.0 * head


RULES = {
  "6n": _six_n,
  "kaplan": _kaplan,
  "kaplan-attention": _kaplan_attention,
  "last-layer": _last_layer,
  "palm": _palm,
  "hoffmann": _hoffmann,
  "gemstones": _gemstones,
  "products": _products,
}


def per_token(shape: Shape, rule: str = "products", context: int = 2048) -> float:
  """FLOPs of training for each token.

  Args:
    shape: of the model.
    rule: a key of RULES.
    context: tokens of a sequence.
  Raises:
    InputError: the rule is unknown.
  """
  if rule not in RULES:
    raise unknown("rule for counting FLOPs", rule, RULES)
  return RULES[rule](shape, context)


def gemstones(width, depth, vocabulary: int = 50_304, context: int = 2048):
  """FLOPs per token of a Gemstone, as McLeish et al. count them; arrays broadcast.

  Args:
    width: a multiple of 128, float[...].
    depth: layers, float[...].
    vocabulary: 0 leaves out the output head, which the authors do for their laws
      without embeddings.
    context: tokens of a sequence.
  """
  heads = width / 128
  shape = Shape(width, depth, heads, 128, 4 * width, vocabulary, kv_heads=heads / 2)
  return _gemstones(shape, context)


def finetuning(frozen: float, trained: float) -> float:
  """FLOPs per token of a fine-tune with frozen and trained weights, without attention.

  A frozen weight needs no gradient of its own, so it costs 4 FLOPs instead of 6. This
  holds if the first layer has trained weights. Otherwise the layers below the lowest
  trained weight cost less, because no gradient passes through them.
  """
  return 4.0 * frozen + 6.0 * trained
