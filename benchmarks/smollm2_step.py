"""A training step of a real model, here and in torch + transformers + peft, on the CPU.

`python benchmarks/smollm2.py speed` runs this file, once for each figure, in a process
of its own. Both libraries train LoRA r=16 on all seven projections in float32 with
AdamW, on the same rows of 512 tokens, one row in a step, all tokens supervised. Their
losses in the first step show that they compute the same.

Memory is the resident set, as Linux counts it: its peak from the start of the process
(VmHWM), with imports, reading the model and compiling; and its peak while steps run.
"""

import pathlib
import time

LENGTH, RANK = 512, 16
CONTESTANTS = {  # name: what of jaxpeft's config is changed; None is the peer
  "torch + transformers + peft": None,
  "jaxpeft": {},
  "jaxpeft, remat=layer": {"model.remat": "layer"},
  "jaxpeft, 20 % of the tokens": {"tokens.fraction": 0.2},
}


def resident(peak: bool) -> int:
  """Bytes resident now, or the most since `reset_peak`. Linux only."""
  key = "VmHWM" if peak else "VmRSS"
  with open("/proc/self/status") as f:
    return 1024 * next(int(line.split()[1]) for line in f if line.startswith(key))


def reset_peak():
  """Resets the peak of resident memory."""
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")


def measure(step, rows) -> dict:
  """What a contestant did: its losses, seconds and memory.

  Args:
    step: tokens of a row -> loss, after the step is finished.
    rows: one for each step; the first two warm up and are not timed.
  """
  early, loaded = resident(peak=True), resident(peak=False)
  reset_peak()
  seconds, cpu, losses = [], [], []
  for row in rows:
    clock, used = time.perf_counter(), time.process_time()
    losses.append(float(step(row)))
    seconds.append(time.perf_counter() - clock)
    cpu.append(time.process_time() - used)
  steps = resident(peak=True)
  return dict(
    seconds=seconds[2:], cpu=cpu[2:], losses=losses, loaded=loaded, steps=steps,
    peak=max(early, steps),
  )  # fmt: skip


def ours(source: str, rows, changed: dict) -> dict:
  """Measures jaxpeft."""
  import jax
  import numpy as np

  from jaxpeft import config_file, experiment, objectives
  from jaxpeft.data.encode import Example
  from jaxpeft.run_data import Data
  from jaxpeft.training import optimizer, step

  words = [f"--config.{key}={x}" for key, x in changed.items()]
  words += [f"--config.model.source={source}", "--config.data.loss_on=all"]
  c = config_file.load("configs/smollm2_lora.py", words)
  objective = objectives.from_config(c)
  tx, rate = optimizer.make(c.train.steps, **c.optim)
  learn = np.arange(LENGTH) > 0  # nothing predicts the first token
  batches = [
    objective.batch([[Example(np.array(row, np.int32), learn)]], LENGTH) for row in rows
  ]
  data = Data(batches, [], [], [])
  # `make` gets the only reference to what was read, as in train.py.
  exp = experiment.make(
    c, experiment.Prepared(objective, tx, rate, experiment.read_base(c), data)
  )
  state, exp = exp.state, exp._replace(state=None)
  arrays = {tuple(row): step.split(x, 1) for row, x in zip(rows, batches, strict=True)}
  compiled = exp.compile_step(state, arrays[tuple(rows[0])])

  def one(row):
    nonlocal state
    state, metrics = compiled(state, exp.frozen, arrays[tuple(row)])
    return jax.block_until_ready(metrics)["loss"]

  return measure(one, rows)


def peer(source: str, rows, _) -> dict:
  """Measures torch + transformers + peft."""
  import peft
  import torch
  import transformers

  path = pathlib.Path(source)
  place = dict(gguf_file=path.name) if path.suffix == ".gguf" else {}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent if place else path, dtype=torch.float32, **place
  )
  names = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]
  lora = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names)
  model = peft.get_peft_model(model, lora)
  model.config.use_cache = False
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)

  def one(row):
    tokens = torch.tensor([row])
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)  # jaxpeft clips, too
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

  return measure(one, rows)


def run(name: str, source: str, rows) -> dict:
  """Measures one contestant in this process."""
  changed = CONTESTANTS[name]
  return (peer if changed is None else ours)(source, rows, changed)
