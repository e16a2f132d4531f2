"""Memory of a training step on each device of a mesh, compiled without the devices.

There are two tables: large models on slices of TPUs or several GPUs, and one model on 1
to 256 chips with the same number of rows per chip (weak scaling). FLOPs are XLA's
count, which counts the body of a loop only once, so compare them only between meshes.

  python benchmarks/mesh_table.py --target=v5e:4x4     (also h100x8, v5p:4x4x4)
  python benchmarks/mesh_table.py --scaling
"""

from absl import app, flags

from jaxpeft import config
from jaxpeft.planning import memory, table, targets

flags.DEFINE_string(
  "target", "v5e:4x4", "Compile the rows of the first table that have this target."
)
flags.DEFINE_bool("scaling", False, "Print the second table instead.")

# target, shape, adapter, quantize, rows, tokens, remat, changes to config.mesh
LORA, SVFT = dict(name="LoRA", rank=16, alpha=16.0), dict(name="SVFT", pattern="plain")
TABLE = [
  ("h100x8", "llama2-7b", LORA, "nf4", 16, 2048, "segments", {}),
  ("v5e:4x4", "llama2-7b", LORA, "nf4", 32, 2048, "segments", {}),
  ("v5e:4x4", "llama2-7b", SVFT, "", 32, 2048, "segments", {}),
  ("v5p:4x4x4", "llama2-70b", LORA, "nf4", 64, 4096, "layer",
   dict(tensor=4, sequence=True)),
]  # fmt: skip
SCALING = ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")


def configure(shape, adapter, quantize, rows, tokens, remat, mesh):
  """The config of one row of the table."""
  c = config.base()
  c.model.source, c.model.dtype = f"init:{shape}", "bfloat16"
  c.model.quantize, c.model.remat = quantize, remat
  c.adapt.main = dict(adapter, match="layers_.*/(attn|mlp)/.*")
  c.data.max_tokens, c.train.batch_size = tokens, rows
  for name, value in mesh.items():
    c.mesh[name] = value
  return c


def main(_):
  f = flags.FLAGS
  target = SCALING[0] if f.scaling else f.target
  targets.prepare(target)  # before JAX looks for devices
  if f.scaling:
    print("LLaMA2-7B, QLoRA r=16, 2 rows of 2,048 tokens for each chip, fsdp")
    made = configure("llama2-7b", LORA, "nf4", 2, 2048, "segments", {})
    print(table.table(table.plans({"": made}, SCALING)))
    return
  for target, shape, adapter, quantize, rows, tokens, remat, mesh in TABLE:
    if target == f.target:
      made = configure(shape, adapter, quantize, rows, tokens, remat, mesh)
      print(shape, adapter["name"], quantize or "bfloat16", f"{rows} x {tokens}",
            remat, mesh or "fsdp", memory.plan(made, target), flush=True)  # fmt: skip


if __name__ == "__main__":
  app.run(main)
