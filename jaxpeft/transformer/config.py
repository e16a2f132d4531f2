"""`ModelConfig`: the description of an architecture that the model's functions read."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rope:
  """The rotary position embedding of a layer, see `rope`.

  Attributes:
    theta: the base of the frequencies.
    kind: a key of `rope.KINDS`, which says how the context is extended.
    options: (name, value) pairs of that kind, sorted by name.
    share: the share of a head's elements that are rotated; the first ones are.
  """

  theta: float = 10_000.0
  kind: str = "default"
  options: tuple[tuple[str, Any], ...] = ()
  share: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Everything that differs between model families. Sizes count elements."""

  family: str  # Hugging Face `model_type`, used only to write checkpoints
  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  ff: int  # feed-forward width, of one expert if there are experts
  max_positions: int
  ropes: tuple[Rope, ...] = (Rope(),)  # the different ones of the layers
  rope_of: tuple[int, ...] = ()  # per layer, an index into ropes; () is all 0
  query_growth: tuple[float, int] | None = None  # Ministral 3, see `rope.query_scale`
  rms_eps: float = 1e-6
  activation: str = "silu"  # or "gelu_tanh"
  tied: bool = False  # True: the output head is the transposed embedding
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = ""  # norm of queries and keys: "", "head" (each head) or "width" (all)
  pre_norms: bool = True  # OLMo 2: no norms before attention and MLP
  post_norms: bool = False  # Gemma 2, OLMo 2: norms after attention and MLP
  norm_offset: float = 0.0  # Gemma: the norm multiplies by 1 + w
  embed_scale: float = 1.0  # factor on embeddings; Gemma: sqrt(width)
  residual_scale: float = 1.0  # Granite: factor on what a block adds to its input
  logit_scale: float = 1.0  # Granite: logits are divided by it
  query_scale: float | None = None  # factor on q k; None is head_dim ** -0.5
  attn_softcap: float | None = None
  final_softcap: float | None = None
  windows: tuple[int, ...] = ()  # per layer, in tokens; () means no layer has one
  experts: int = 0  # 0: a dense feed-forward part
  experts_per_token: int = 0
  normalize_experts: bool = True  # whether a token's expert weights sum to 1
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None

  def __post_init__(self):
    sizes = (
      "vocab_size width depth heads kv_heads head_dim ff max_positions".split()
      + "experts experts_per_token".split() * bool(self.experts)
    )
    for name in sizes:
      if getattr(self, name) < 1:
        raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
      )
    for name in ("windows", "rope_of"):
      given = getattr(self, name)
      if given and len(given) != self.depth:
        raise ValueError(f"{len(given)} {name} for depth {self.depth}")
    if any(w < 1 for w in self.windows):
      raise ValueError(f"windows {self.windows} must be at least 1")
    if self.experts_per_token > self.experts:
      raise ValueError(
        f"experts_per_token {self.experts_per_token} exceeds experts {self.experts}"
      )
    rotated = {self.head_dim * rope.share for rope in self.ropes}
    if len(rotated) > 1 or any(n % 2 for n in rotated):
      raise ValueError(f"rotary dimensions {sorted(rotated)} must be one even number")
