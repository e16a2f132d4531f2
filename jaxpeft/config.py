"""Every option of a run, with its default, its unit and a comment.

Nothing else has defaults: a file in configs/ is a diff against `base()`, and so is the
command line (`--config.optim.lr=1e-3`). `--help` prints this file's keys and comments.
"""

import inspect
import json
import re
from typing import NamedTuple

from ml_collections import config_dict


def base() -> config_dict.ConfigDict:
  """The default run: the embedded toy on two-step problems, without an adapter."""
  optional = config_dict.placeholder
  c = config_dict.ConfigDict()
  c.seed = 0  # seed of initialization, data order and sampling

  c.model = config_dict.ConfigDict()  # the base model
  c.model.source = "embedded"  # or a directory, .gguf file, hub id, init:SHAPE
  c.model.dtype = "float32"  # dtype of frozen weights and matmuls; or "bfloat16"
  c.model.quantize = ""  # "nf4" holds every projection in 4 bits, as QLoRA does
  c.model.groups = ()  # layers per scan, e.g. (24, 8); () is one scan over all
  c.model.remat = "products"  # what the backward pass keeps; "a,b" for two groups

  c.adapt = config_dict.ConfigDict()  # NAME -> name: method, match: regex, its options

  c.objective = config_dict.ConfigDict()  # what is trained on what
  c.objective.name = "supervised"  # `python -m jaxpeft list` names them
  c.objective.loss = "sigmoid"  # preference: or "ipo", "hinge", "orpo", "simpo"
  c.objective.beta = 0.1  # preference: weight of log-probabilities against a reference
  c.objective.label_smoothing = 0.0  # share of pairs that may be the wrong way round
  c.objective.nll = 0.0  # preference: weight of the chosen answer's mean loss per token
  c.objective.reference_free = False  # preference: without the base's log-probabilities
  c.objective.gamma = 0.5  # preference: the margin that "simpo" aims at
  c.objective.center = 0.0  # reward: weight of the squared sum of a pair's rewards
  c.objective.pool = "last"  # reward: token that is scored; "hf": the last but padding

  c.data = config_dict.ConfigDict()  # training and held-out data
  c.data.train = "embedded:two_step/train"  # or a file, or a data set of the hub
  c.data.eval = "embedded:two_step/test"  # like data.train; "" for none
  c.data.columns = config_dict.ConfigDict()  # field -> column of files, if names differ
  c.data.limit = optional(int)  # training examples to use; None is all
  c.data.max_tokens = 192  # tokens per row; longer examples are cut, and reported
  c.data.pack = True  # put several examples in a row; they do not see each other
  c.data.loss_on = "completion"  # supervised tokens; or "all"

  c.train = config_dict.ConfigDict()  # the training loop
  c.train.steps = 200  # optimizer steps; train.epochs, if given, counts instead
  c.train.epochs = optional(float)  # passes over the data, from which the steps follow
  c.train.batch_size = 16  # rows per optimizer step
  c.train.accumulate = 1  # microbatches that a step is split into
  c.train.neftune = 0.0  # alpha of the noise on embeddings; 0 is none
  c.train.log_every = 10  # steps between log lines
  c.train.eval_every = 100  # steps between held-out losses; 0 is only at the end
  c.train.eval_first = True  # take the held-out loss before the first step, too
  c.train.save_every = 100  # steps between checkpoints; 0 is only at the end
  c.train.keep_best = True  # keep the adapter of the least held-out loss, not the last
  c.train.patience = 0  # held-out losses without improvement before stopping; 0 is off

  c.log = config_dict.ConfigDict()  # who shows a run's numbers besides metrics.jsonl
  c.log.tracker = "tensorboard"  # wandb, trackio, none; several: "tensorboard,wandb"
  c.log.example = True  # show the first training example, its supervised part marked
  c.log.project = "jaxpeft"  # where wandb and trackio put the run

  c.mesh = config_dict.ConfigDict()  # sizes of the device mesh; -1, once, is the rest
  c.mesh.data = 1  # copies of the weights; the batch's rows are split among them
  c.mesh.fsdp = -1  # pieces of every weight, gathered layer by layer; splits rows, too
  c.mesh.tensor = 1  # pieces of heads, feed-forward and vocabulary
  c.mesh.sequence = False  # let `tensor` also split the tokens between layers

  c.processes = config_dict.ConfigDict()  # time limits of a run of several processes
  c.processes.heartbeat_s = 45  # seconds of silence until a process counts as dead
  c.processes.start_s = 600  # seconds to wait for the last process to start
  c.processes.wait_s = 900  # seconds to wait for the last process to compile or save
  c.processes.end_s = 300  # seconds to wait for the last process to finish

  c.tokens = config_dict.ConfigDict()  # token selection: which tokens carry gradient
  c.tokens.fraction = 1.0  # share of a row's tokens; 1 is all
  c.tokens.choose = "random"  # or "completion", "prefix", "loss", "attention"
  c.tokens.always = 1  # first tokens of every example that are always chosen
  c.tokens.reweigh = False  # weigh rows by all their supervised tokens

  c.optim = config_dict.ConfigDict()  # the optimizer
  c.optim.name = "adamw"  # any optimizer in optax or optax.contrib
  c.optim.lr = 1e-3  # peak learning rate
  c.optim.schedule = "cosine"  # after the warm-up; or "linear", "constant"
  c.optim.warmup = 0.05  # share of all steps
  c.optim.final_lr = 0.0  # share of the peak at the last step
  c.optim.clip_norm = 1.0  # largest norm of the whole gradient; 0 is off
  c.optim.weight_decay = 0.0  # where the optimizer has one
  c.optim.options = config_dict.ConfigDict()  # further options of that optimizer
  c.optim.groups = config_dict.ConfigDict()  # NAME -> match: regex, times: factor of lr
  c.optim.precondition = ""  # "scaled_gd" (NoRA+) rescales gradients before clipping

  c.eval = config_dict.ConfigDict()  # evaluation, before and after training
  c.eval.task = "gsm8k"  # or "exact", "choice", "math", "trip", ...; "" for none
  c.eval.limit = 200  # problems; 0 is all
  c.eval.loss_limit = 256  # examples of the held-out loss; 0 is all
  c.eval.batch_size = 100  # most prompts at once; 0: as many as memory holds
  c.eval.max_new_tokens = 96  # the most new tokens of an answer
  c.eval.temperature = 0.0  # 0 is greedy
  c.eval.top_k = 0  # draw among the k likeliest tokens; 0 is off
  c.eval.top_p = 1.0  # draw among the likeliest tokens of this probability; 1 is off
  c.eval.min_p = 0.0  # draw among tokens as likely as this share of the likeliest
  c.eval.repetition_penalty = 1.0  # above 1: tokens of the text so far are less likely
  c.eval.drafts = 0  # tokens guessed in each step from the text so far; same answers
  c.eval.answer = "strict"  # rule that counts: a task's strict one, or "flexible", ...
  c.eval.normalize = "strip"  # exact, choice: or lower,punctuation,articles,spaces
  c.eval.extract = ""  # exact, choice: regex whose group 1 in a text is the answer
  c.eval.labels = ""  # choice: labels with commas; "" takes them from the data
  c.eval.choice = "likelihood"  # choice: or "generation"
  c.eval.prefer = "auto"  # preference: scores: "reward", "sum", "mean", "change"
  c.eval.own_shots = False  # trip, meeting, calendar: ask the row's own prompt_5shot
  c.eval.shots = 0  # solved rows of data.train that a prompt shows before its problem
  c.eval.reuse_base = True  # keep the base's answers on disk for other runs
  c.eval.strategy = ""  # "sets", "self_consistency", ... of eval.py; "" asks once
  c.eval.m = 4  # chains or samples of a problem
  c.eval.n = 4  # most rounds of verify and correct in a chain
  c.eval.vote_over = "all"  # sets: or "verified_first"
  c.eval.by = "verify"  # best_of_n: or "choice", "logprob", "mean_logprob", "reward"
  c.eval.reward = ""  # run of a reward model, for by=reward and weighted_vote
  c.eval.temperatures = (0.7, 0.7, 0.7)  # of a strategy's sample, verify and correct

  c.scaling = config_dict.ConfigDict()  # a study of `python -m jaxpeft scaling run`
  c.scaling.sizes = ()  # WIDTHxDEPTH of its models, e.g. ("16x2", "32x2"); () is none
  c.scaling.budgets = ()  # FLOPs of a run, 6 N D: each size is trained with each
  c.scaling.tokens_per_parameter = (1.0, 1000.0)  # runs with fewer or more are left out
  c.scaling.seeds = 1  # runs of each size and budget, trained side by side
  c.scaling.rates = (3e-3, 1e-2, 3e-2)  # grid of learning rates; a single one is taken
  c.scaling.tuned = 3  # how many sizes, the first ones, are tuned; a line does the rest
  c.scaling.tune_tokens = 20.0  # tokens per parameter of a run that tunes
  c.scaling.held_out = 512  # rows of data.max_tokens that measure the loss
  c.scaling.ranks = ()  # of LoRA: a study of fine-tuning, of each with each of `rows`
  c.scaling.rows = ()  # numbers of training rows
  c.scaling.text = config_dict.ConfigDict()  # the synthetic text, new for every step
  c.scaling.text.vocabulary = 64  # tokens
  c.scaling.text.orders = (0.05, 0.15, 0.3, 0.5)  # how likely 0, 1, ... tokens count
  c.scaling.text.candidates = 2  # next tokens that a table lists for a context
  c.scaling.text.zipf = 1.0  # exponent of the law of candidates
  c.scaling.text.seed = 0  # of the tables
  c.lock()  # a mistyped key is an error, also in a config file
  c.adapt.unlock()
  c.data.columns.unlock()
  c.optim.options.unlock()
  c.optim.groups.unlock()
  return c


class Option(NamedTuple):
  """One key of the config, for `--help`."""

  key: str  # e.g. train.steps; a section if default is None
  default: str | None  # as written in `base`
  comment: str


def options() -> list[Option]:
  """Every key of `base` with its default and its comment, in order."""
  section = r"  c\.([\w.]+) = config_dict\.ConfigDict\(\)  # (.*)"
  value = r"  c\.([\w.]+) = (.*?)  # (.*)"
  found = []
  for line in inspect.getsource(base).splitlines():
    if match := re.fullmatch(section, line):
      found.append(Option(match[1], None, match[2]))
    elif match := re.fullmatch(value, line):
      default = "None" if match[2].startswith("optional") else match[2]
      found.append(Option(match[1], default, match[3]))
  return found


def to_json(config) -> dict:
  """The config as plain values."""
  return json.loads(config.to_json_best_effort())


def filled(values: dict) -> dict:
  """A saved config, with defaults for the keys that it is too old to have.

  Raises:
    ValueError: a value has another type than the default of its key.
  """
  return _over(to_json(base()), values)


def _over(old, new, place: str = ""):
  if isinstance(old, dict) and isinstance(new, dict):
    known = {k: _over(old[k], x, f"{place}.{k}") for k, x in new.items() if k in old}
    return old | new | known
  kinds = (int, float) if isinstance(old, float) else type(old)
  # A default of None says nothing about the type of the value.
  fits = isinstance(new, kinds) and isinstance(new, bool) == isinstance(old, bool)
  if fits or (old is None and not isinstance(new, dict | list)):
    return new
  want = "a section" if isinstance(old, dict) else f"of type {type(old).__name__}"
  raise ValueError(f"{place[1:]} is {str(new)[:60]!r}; it must be {want}")
