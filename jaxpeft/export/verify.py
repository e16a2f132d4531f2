"""Exports a run, reads the export back, and keeps it only if its logits agree."""

import pathlib
import shutil
from typing import NamedTuple

import numpy as np

from jaxpeft import experiment, objectives, temporary
from jaxpeft import model as models
from jaxpeft.checkpoints import gguf_write, peft, peft_names
from jaxpeft.checkpoints.gguf_reader import is_gguf
from jaxpeft.data import sources
from jaxpeft.errors import InputError
from jaxpeft.export import save
from jaxpeft.objectives import head
from jaxpeft.parallel import distributed, sharding
from jaxpeft.training import workdir as workdirs
from jaxpeft.transformer import decoder

# dtype -> largest allowed difference of logits, in standard deviations of the logits.
# bfloat16 and q8_0 round weights to 8 bits (q8_0: of the largest of 32), which moves
# every logit a little; float32 hardly moves them.
_TOLERANCE = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.75, "q8_0": 0.75}
# Format of an export -> the dtypes that its weights may have.
DTYPES = {
  "hf": ("float32", "bfloat16"),
  "gguf": tuple(gguf_write.KINDS),
  "peft": (),
}
_SHARE = 0.5  # largest mean difference, as a share of the adapter's mean change
_ROWS, _TOKENS = 16, 128


class Parity(NamedTuple):
  """Comparison of two models' logits on the same tokens."""

  difference: float  # largest |difference of logits|
  deviation: float  # standard deviation of the logits
  mean: float  # mean |difference of logits|
  agreement: float  # share of tokens with the same likeliest next token
  scores: bool = False  # whether rewards of every token were compared, not logits

  def __str__(self) -> str:
    if self.scores:
      return (
        f"rewards differ by at most {self.difference:.2g} (their deviation is "
        f"{self.deviation:.2g})"
      )
    return (
      f"logits differ by at most {self.difference:.2g} (their deviation is "
      f"{self.deviation:.2g}), greedy tokens agree on {100 * self.agreement:.2f} %"
    )


def compare(one: models.Model, other: models.Model, rows: list) -> Parity:
  """`Parity` of two models on rows of token ids.

  Rows are padded to one length, so that each model compiles only once.
  """
  worst, same, count, spread, means = 0.0, 0, 0, [], []
  longest = max(map(len, rows))
  of = _scores if head.HEAD in one.params else _logits
  for row in rows:
    tokens = np.pad(np.asarray(row, np.int32), (0, longest - len(row)))[None]
    mask = np.arange(longest)[None] < len(row)
    a, b = (sharding.to_host(of(m, tokens, mask))[0, : len(row)] for m in (one, other))
    worst = float(np.maximum(worst, np.abs(a - b).max()))  # propagates NaN
    means.append(np.abs(a - b).mean())
    same += int((a.argmax(-1) == b.argmax(-1)).sum())
    count += len(row)
    spread.append(a.std())
  deviation, mean = float(np.mean(spread)), float(np.mean(means))
  return Parity(worst, deviation, mean, same / count, of is _scores)


def _logits(model: models.Model, tokens, mask):
  return model(tokens, mask)


def _scores(model: models.Model, tokens, mask):
  """Rewards [1, T, 1] of every token."""
  del mask  # what follows a token changes nothing
  params = head.added(model.params)
  stream = decoder.Stream(tokens, decoder.full_rows(tokens.shape))
  hidden = decoder.hidden(model.transformer, params, stream)
  return head.score(params, hidden)[..., None]


def export_run(workdir, format: str, directory, dtype, rank, tolerance) -> str:
  """The measured parity, as text, after exporting a run's result on the current mesh.

  If there are several processes, all must call this, and process 0 writes.

  Args:
    workdir: the run's directory.
    format: "hf" for merged weights as a directory, "gguf" for merged weights as one
      file, or "peft" for the adapter.
    directory: where to write: a directory that does not exist or is empty, or for
      "gguf" a file NAME.gguf that does not exist.
    dtype: dtype of merged weights, see `DTYPES`; None is the run's.
    rank: for "peft": rank of the nearest LoRA, if the method is not a LoRA itself.
    tolerance: largest allowed difference of logits; None allows a share of their
      standard deviation, which depends on the dtype.
  Raises:
    InputError: the options are wrong, or the export's logits differ from the run's.
      Nothing is written then.
  """
  if format == "peft":
    peft.check_processes()
  directory = pathlib.Path(directory)
  _check_out(directory, format)
  if dtype and dtype not in DTYPES[format]:
    raise InputError(
      f"--dtype={dtype} does not apply to --format={format}; known there: "
      f"{', '.join(DTYPES[format]) or 'none'}"
    )
  if rank is not None and format != "peft":
    raise InputError(f"--rank applies to --format=peft only, not to {format}")
  if rank is not None and rank < 1:
    raise InputError(f"--rank {rank} is below 1")
  config = workdirs.read_config(workdir)
  base = experiment.read_base(config)
  if format == "peft":
    peft_names.check_family(base.config)
  tuned = experiment.load_run(workdir, config, base)
  directory.parent.mkdir(parents=True, exist_ok=True)
  with temporary.directory(directory.parent, ".export-") as tmp:
    tmp = (
      pathlib.Path(distributed.exchange(str(tmp))[0]) / directory.name
    )  # process 0's
    lost = 0.0
    own = config.model.dtype
    if format == "hf":
      save.save_hf(tuned, tmp, dtype)
      back = models.load(str(tmp), dtype or own)
    elif format == "gguf":
      save.save_gguf(tuned, tmp, dtype)
      back = models.load(str(tmp), "float32" if dtype == "float32" else own)
    else:
      errors = save.save_adapter(
        tuned.params, tmp, format, base=base.params, rank=rank, base_name=base.name
      )
      lost = max(errors.values())
      back = base.replace(params=save.load_adapter(base.params, tmp))
    rows = _rows(config, base)
    if _rows(config, back) != rows:
      raise InputError("not exported: the written tokenizer gives other token ids")
    parity = compare(tuned, back, rows)
    limit = max(_TOLERANCE[dtype or own], _TOLERANCE[own]) * parity.deviation
    limit = limit if tolerance is None else tolerance
    text = str(parity)
    if lost > 1e-4:
      text += f"; the nearest LoRA loses up to {100 * lost:.1f} % of a weight's change"
    if not parity.difference <= limit:
      raise InputError(
        f"not exported: {text}. The limit is {limit:.2g}; change it with --tolerance"
      )
    exact = parity.difference <= _TOLERANCE["float32"] * parity.deviation
    change = compare(tuned, base, rows).mean
    if tolerance is None and not exact and not parity.mean <= _SHARE * change:
      raise InputError(
        f"not exported: {text}, on average by {parity.mean:.2g}; the adapter itself "
        f"changes them by {change:.2g} only, so rounding would lose its effect. Export "
        "with --dtype=float32, or set --tolerance"
      )
    if distributed.is_main():
      if directory.is_dir():
        directory.rmdir()
      shutil.move(tmp, directory)
    distributed.barrier("exported")
  return text


def _check_out(path: pathlib.Path, format: str):
  """Refuses a place that the export would overwrite, or that its format cannot be."""
  if format == "gguf" and not is_gguf(path):
    raise InputError(f"--format=gguf writes one file: --out={path}.gguf")
  if path.is_file() or (path.is_dir() and any(path.iterdir())):
    raise InputError(f"{path} is not empty; choose another --out")


def _rows(config, base) -> list:
  """Token ids of a few examples of the run's data, cut to 128 tokens."""
  d = config.data
  objective, name = objectives.from_config(config), d.eval or d.train
  rows = sources.find(name, d.columns, objective.checked).read(_ROWS)
  found = objective.encode(rows, base.tokenizer, d.max_tokens, name)
  return [np.asarray(example.tokens[:_TOKENS]).tolist() for example in found.examples]
