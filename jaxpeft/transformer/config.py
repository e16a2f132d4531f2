"""`ModelConfig`: the description of an architecture that the model's functions read."""

import dataclasses


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
  ff: int
  max_positions: int
  rope_theta: float = 10_000.0
  rope_scaling: tuple[tuple[str, float | str], ...] = ()  # ("rope_type", "llama3"), ...
  rms_eps: float = 1e-6
  activation: str = "silu"  # or "gelu_tanh"
  tied: bool = False  # True: the output head is the transposed embedding
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False  # Gemma 2: norms after attention and MLP, too
  norm_offset: float = 0.0  # Gemma: the norm multiplies by 1 + w
  embed_scale: bool = False  # Gemma: embeddings are multiplied by sqrt(width)
  query_scale: float | None = None  # factor on q k; None is head_dim ** -0.5
  attn_softcap: float | None = None
  final_softcap: float | None = None
  windows: tuple[int, ...] = ()  # per layer, in tokens; () means no layer has one
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
      )
    if self.windows and len(self.windows) != self.depth:
      raise ValueError(f"{len(self.windows)} windows for depth {self.depth}")
