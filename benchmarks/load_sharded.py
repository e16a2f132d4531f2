"""Host memory of each process while a model is loaded sharded over processes.

The benchmark writes a random Llama of about 1 GB as a checkpoint, then loads it in 1, 2
and 4 processes with one CPU device each, whose device memory is host memory. It prints
the largest growth of any process's anonymous memory (without the pages of mapped files)
during loading.

  python benchmarks/load_sharded.py [--quantize=nf4]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags

flags.DEFINE_string("quantize", None, "Empty, or nf4.")
flags.DEFINE_string("member", None, "Internal: the model that this process loads.")

SHAPE = dict(vocab_size=16_384, width=1536, depth=24, heads=12, kv_heads=12,
             head_dim=128, ff=4096, max_positions=128)  # fmt: skip


def own_bytes() -> int:
  """Bytes of anonymous memory of this process, without mapped files. Linux only."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(x.split()[1]) for x in lines if x.startswith("RssAnon")) * 1024


def member(directory: str, quantize: str | None):
  """Loads the model in this process, and prints the growth of its memory."""
  from jaxpeft.parallel import distributed

  distributed.initialize()
  import jax

  from jaxpeft.checkpoints import hf
  from jaxpeft.checkpoints.reader import SafetensorsReader
  from jaxpeft.parallel import sharding
  from jaxpeft.quantization import nf4

  mesh = sharding.mesh()
  if mesh is not None:
    jax.set_mesh(mesh)
  if quantize:  # compile first: the compiler's memory is not the loader's
    jax.block_until_ready(nf4.quantize(jax.numpy.zeros((128, 128))))
  most, done = [own_bytes()], threading.Event()
  before = most[0]

  def watch():
    while not done.is_set():
      most.append(max(most[-1], own_bytes()))
      time.sleep(0.002)

  thread = threading.Thread(target=watch)
  thread.start()
  config = hf.read_config(directory)
  reader = SafetensorsReader(directory)
  params = hf.load(reader, config, "bfloat16", quantize=bool(quantize))
  jax.block_until_ready(params)
  done.set()
  thread.join()
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  print(json.dumps(dict(growth=max(most) - before, size=size)), flush=True)
  distributed.barrier("measured")


def main(_):
  if flags.FLAGS.member:
    member(flags.FLAGS.member, flags.FLAGS.quantize)
    return
  import jax

  from jaxpeft import model
  from jaxpeft.checkpoints import hf_write
  from jaxpeft.transformer.config import ModelConfig
  from jaxpeft.transformer.decoder import Transformer

  config = ModelConfig(family="llama", **SHAPE)
  with tempfile.TemporaryDirectory() as tmp:
    params = model.init(Transformer(config, dtype="bfloat16"), 0)
    hf_write.save(tmp, config, params)
    leaves = jax.tree.leaves(params)
    largest = max(x.nbytes // (x.shape[0] if x.ndim == 3 else 1) for x in leaves)
    del params, leaves
    print("processes  model MB  largest tensor MB  growth MB  model/n + tensor MB")
    for count in (1, 2, 4):
      command = [sys.executable, "-m", "jaxpeft", "launch", "-n", str(count)]
      command += ["--devices-per-process=1", "--", sys.executable, __file__]
      command += [f"--member={tmp}"]
      command += [f"--quantize={flags.FLAGS.quantize}"] * bool(flags.FLAGS.quantize)
      out = subprocess.run(
        command, check=True, capture_output=True, text=True, env=dict(os.environ)
      ).stdout
      found = [json.loads(x[x.index("{") :]) for x in out.splitlines() if "growth" in x]
      assert len(found) == count, out
      growth, size = max(x["growth"] for x in found), found[0]["size"]
      limit = size / count + largest
      row = [size / 1e6, largest / 1e6, growth / 1e6, limit / 1e6]
      print(f"{count:>9}" + "".join(f"{x:>14.0f}" for x in row), flush=True)


if __name__ == "__main__":
  app.run(main)
