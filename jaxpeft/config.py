"""Every option, its default, its unit. Nothing else has defaults.

A file in configs/ is a diff against `base()`, and so is the command line:
`--config.optim.lr=1e-3`.
"""

import json

from ml_collections import config_dict


def base() -> config_dict.ConfigDict:
  """The default run: the embedded toy model on two-step problems, no adapter yet."""
  optional = config_dict.placeholder
  c = config_dict.ConfigDict()
  c.seed = 0  # of initialization, data order and sampling

  c.model = config_dict.ConfigDict()
  c.model.source = (
    "embedded"  # or a directory, hub id "org/name[@revision]", "init:SHAPE"
  )
  c.model.dtype = "float32"  # of the frozen weights and the matmuls; or "bfloat16"
  c.model.quantize = ""  # or "nf4": 4 bits for every projection, as QLoRA has it
  c.model.groups = ()  # layers per scan, e.g. (24, 8); () is all in one
  c.model.remat = "products"  # what is kept: layers.REMAT; "a,b" for two groups

  # name -> {name: a method, match: regex of whole paths, and the method's options}
  c.adapt = config_dict.ConfigDict()

  c.data = config_dict.ConfigDict()
  c.data.train = "embedded:two_step/train"  # or a JSONL file
  c.data.eval = "embedded:two_step/test"  # or a JSONL file; "" for none
  c.data.limit = optional(int)  # examples of the training data; None is all
  c.data.max_tokens = 192  # per row; longer examples are cut, and reported
  c.data.pack = True  # several examples to a row, which do not see each other
  c.data.loss_on = "completion"  # or "all"

  c.train = config_dict.ConfigDict()
  c.train.steps = 200  # optimizer steps
  c.train.batch_size = 16  # rows per optimizer step
  c.train.accumulate = 1  # microbatches that a step is computed in
  c.train.neftune = 0.0  # alpha of the noise on embeddings; 0 is none
  c.train.log_every = 10  # steps
  c.train.eval_every = 100  # steps; 0 is never
  c.train.save_every = 100  # steps
  c.train.keep_best = True  # the adapter with the least held-out loss, not the last
  c.train.patience = 0  # evaluations without improvement before stopping; 0 is never

  c.mesh = config_dict.ConfigDict()  # of devices; see sharding. -1, once, is the rest
  c.mesh.data = 1  # copies of the weights, each for a part of the rows
  c.mesh.fsdp = -1  # pieces of every weight, gathered layer by layer; cuts rows, too
  c.mesh.tensor = 1  # pieces of heads, feed-forward and vocabulary
  c.mesh.sequence = False  # whether `tensor` cuts tokens between layers, too

  c.processes = config_dict.ConfigDict()  # where a run has several; see distributed
  c.processes.heartbeat_s = 45  # of silence, after which one is dead and all end
  c.processes.start_s = 600  # for the last one to come up
  c.processes.wait_s = 900  # for the last one to compile, to save, ...
  c.processes.end_s = 300  # for the last one to finish

  c.tokens = config_dict.ConfigDict()  # which carry gradient; see tokens.Selection
  c.tokens.fraction = 1.0  # of a row's; 1 is all
  c.tokens.choose = "random"  # or "completion", "prefix", "loss", "attention"
  c.tokens.always = 1  # first tokens of every example, chosen before all others
  c.tokens.reweigh = False  # rows weigh by all their supervised tokens

  c.optim = config_dict.ConfigDict()
  c.optim.name = "adamw"  # any in optax or optax.contrib
  c.optim.lr = 1e-3
  c.optim.schedule = "cosine"  # or "linear", "constant"; after the warm-up
  c.optim.warmup = 0.05  # of all steps
  c.optim.final_lr = 0.0  # of lr, when all steps are done
  c.optim.clip_norm = 1.0  # of the whole gradient; 0 is never
  c.optim.weight_decay = 0.0
  c.optim.options = config_dict.ConfigDict()  # further ones of that optimizer
  # name -> {match: regex of whole paths of trained leaves, times: of lr}, e.g. LoRA+
  c.optim.groups = config_dict.ConfigDict()
  c.optim.precondition = ""  # or "scaled_gd" (NoRA+): of gradients, before clipping

  c.eval = config_dict.ConfigDict()
  c.eval.task = "gsm8k"  # how prompts are made and answers scored; "" for the loss only
  c.eval.limit = 200  # problems; 0 is all
  c.eval.loss_limit = 256  # examples of the held-out loss; 0 is all
  c.eval.batch_size = 100  # prompts decoded at once
  c.eval.max_new_tokens = 96
  c.eval.temperature = 0.0  # 0 is greedy
  c.eval.top_k = 0  # 0 is off
  c.eval.top_p = 1.0
  c.eval.answer = "strict"  # accuracy by "strict" (#### N) or "flexible" match
  c.lock()  # a mistyped key is an error, also in a config file
  c.adapt.unlock()
  c.optim.options.unlock()
  c.optim.groups.unlock()
  return c


def to_json(config) -> dict:
  """The config as plain values."""
  return json.loads(config.to_json_best_effort())


def filled(values: dict) -> dict:
  """A saved config, with the defaults of keys and sections that are newer than it."""
  return _over(to_json(base()), values)


def _over(old, new):
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return new
  return old | {key: _over(old.get(key), x) for key, x in new.items()}
