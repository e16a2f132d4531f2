"""Overhead of a mesh for the Python program, at the same work on 1 to 8 devices.

  python benchmarks/sharding_overhead.py [--rounds 3] [--steps 12]

It times the parts of train.py's loop, with the same functions: LoRA r=8 on all
projections of the embedded model, 8 rows of 192 tokens in float32, on devices of JAX's
host platform. These devices share the machine's cores, so that more devices are not
faster, and run collectives besides. "step" is the wall time of all that, from the end
of one step to the end of the next. The program's own part is measured in CPU
milliseconds of its thread, which the threads of the devices cannot lengthen:

  batch     packed rows to arrays of microbatches (data.batches, training.step.split)
  place     sharding.place_batch
  dispatch  the compiled step, from call to return
  sync      the metrics to Python numbers, after the step is done
  own       the sum of these

"empty" is the wall time of a program that has the step's arguments and results but
computes nothing, including the time of JAX's own threads. Each figure comes from its
own processes, which take turns; ratios are to one device in the same round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

MESHES = ["data 1", *(f"{axis} {n}" for axis in ("data", "fsdp") for n in (2, 4, 8))]
PARTS = ("batch", "place", "dispatch", "sync")
WARM = 3  # first steps, which are not counted


def prepare(axis: str, count: int):
  """(batches, compiled step, compiled empty step, state, frozen), as in train.py."""
  import jax
  import jax.numpy as jnp

  from jaxpeft import config, experiment
  from jaxpeft.parallel import sharding

  c = config.base()
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=8, alpha=16.0)
  c.train.batch_size = 8
  experiment.enter_mesh(sharding.mesh(**(dict(data=1, fsdp=1) | {axis: count})))
  exp = experiment.make(c)
  state = exp.state
  first = sharding.place_batch(exp.batch(0))
  step = exp.make_step()
  lowered = step.lower(state, exp.frozen, first)
  names = lowered.out_info[1]

  def empty(state, frozen, batch):
    # Negate twice: jit would return unchanged arguments without running the program.
    same = jax.tree.map(lambda x: jnp.negative(jnp.negative(x)), state)
    return same, dict.fromkeys(names, same.step)

  empty = jax.jit(empty, donate_argnums=0, keep_unused=True)
  empty = empty.lower(state, exp.frozen, first).compile()
  return exp.data.batches, lowered.compile(), empty, state, exp.frozen


def measure(axis: str, count: int, steps: int) -> dict:
  """{part: median over the steps, in milliseconds}."""
  import jax

  from jaxpeft.parallel import sharding
  from jaxpeft.training import step as training

  batches, step_fn, empty_fn, state, frozen = prepare(axis, count)
  times = {name: [] for name in ("step", "empty", *PARTS)}
  for i in range(steps + WARM):
    wall, cpu = time.perf_counter(), [time.thread_time()]
    batch = training.split(batches[i], 1)
    cpu.append(time.thread_time())
    batch = sharding.place_batch(batch)
    cpu.append(time.thread_time())
    state, metrics = step_fn(state, frozen, batch)
    cpu.append(time.thread_time())
    jax.block_until_ready((state, metrics))
    done = time.thread_time()
    metrics = {key: float(x) for key, x in metrics.items()}
    times["sync"].append(time.thread_time() - done)
    times["step"].append(time.perf_counter() - wall)
    for name, start, end in zip(PARTS, cpu, cpu[1:], strict=False):
      times[name].append(end - start)
  for _ in range(4 * steps + WARM):
    wall = time.perf_counter()
    state, metrics = empty_fn(state, frozen, batch)
    jax.block_until_ready((state, metrics))
    times["empty"].append(time.perf_counter() - wall)
  found = {name: 1e3 * statistics.median(x[WARM:]) for name, x in times.items()}
  return found | dict(own=sum(found[name] for name in PARTS))


def main():
  """Runs every mesh in turn, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=12)
  parser.add_argument("--only", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.only:
    axis, count = args.only.split()
    print(json.dumps(measure(axis, int(count), args.steps)))
    return
  results = {mesh: [] for mesh in MESHES}
  for _ in range(args.rounds):
    for mesh, got in results.items():
      devices = f"--xla_force_host_platform_device_count={mesh.split()[1]}"
      env = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=devices)
      command = [sys.executable, __file__, "--only", mesh, "--steps", str(args.steps)]
      out = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
      got.append(json.loads(out.stdout.splitlines()[-1]))

  def typical(mesh, name):
    return statistics.median(got[name] for got in results[mesh])

  def ratio(mesh, name):
    pairs = zip(results[mesh], results[MESHES[0]], strict=True)
    return statistics.median(a[name] / b[name] for a, b in pairs)

  print(f"{os.cpu_count()} cores, {args.rounds} rounds of {args.steps} steps, medians")
  print(f"{'':7}{'step ms':>8}{'x one':>7} |", *(f"{name:>8}" for name in PARTS),
        f"{'own ms':>8}{'x one':>7}{'of step':>9} |{'empty ms':>9}")  # fmt: skip
  for mesh in MESHES:
    share = statistics.median(got["own"] / got["step"] for got in results[mesh])
    print(
      f"{mesh:7}{typical(mesh, 'step'):>8.0f}{ratio(mesh, 'step'):>7.2f} |",
      *(f"{typical(mesh, name):>8.2f}" for name in PARTS),
      f"{typical(mesh, 'own'):>8.2f}{ratio(mesh, 'own'):>7.2f}{share:>9.2%} |"
      f"{typical(mesh, 'empty'):>9.2f}",
    )


if __name__ == "__main__":
  main()
