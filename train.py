"""Fine-tunes a model: python train.py --config=configs/svft_banded.py

Read it top to bottom: options, model and data, adapter, resume, compile, loop, result.
Running it again with the same --workdir resumes, or says that the run is finished.
"""

import dataclasses
import sys
import time

from absl import flags

from jaxpeft import cli, config_file
from jaxpeft.errors import InputError

cli.process_flags()
flags.DEFINE_string("workdir", None, "Directory of the run; default runs/NAME.")
flags.register_validator("workdir", lambda path: path != "", "--workdir= is empty")


def main(argv):
  """Trains, or resumes, one run."""
  started = time.monotonic()
  parsed, config, path = cli.parse(cli.help_first(argv, __doc__))
  if config is None or path is None:
    raise InputError("which run? Give --config=configs/NAME.py")
  config = config.lock()
  cli.join(parsed, config)  # before JAX has devices

  # Imported after the flags are parsed, so that a typing error is answered at once.
  import jax

  from jaxpeft import adapters, console, experiment
  from jaxpeft.checkpoints import adapter as adapter_files
  from jaxpeft.checkpoints import run_state
  from jaxpeft.evaluation import answers_file, evaluate
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import log, loop, report, workdir

  # ---- options, model and data: all is checked before anything is written
  experiment.enter_mesh(sharding.mesh(**config.mesh))
  place = parsed.workdir or workdir.default(*config_file.places(path), config)
  prepared = experiment.prepare(
    config, found=lambda hashes: workdir.check(place, config, hashes)
  )
  config, base, problems = prepared.config, prepared.base, prepared.data.problems
  t, e = config.train, config.eval  # train.epochs has become steps
  shots = prepared.data.shots
  folder = workdir.prepare(place, config, prepared.data.hashes)
  config = workdir.begun(folder, config)
  prepared = prepared._replace(config=config)
  finished = [line for line in log.read(folder / "metrics.jsonl") if "final" in line]
  if finished:
    console.note(f"{folder} is finished; {report.next_command(folder, config)}")
    console.say(report.result(finished[-1]))
    return
  store = run_state.Checkpoints(folder / "checkpoints")
  new, task = store.latest is None, prepared.data.task

  # ---- the base model's answers, then the adapter and the state
  if new:
    logs = log.Log(folder, -1, config)
  if new and task:
    console.note(f"{len(problems)} answers of the base model ...")
    ask = experiment.ask(config, base, kept=e.reuse_base)
    before = evaluate.answers(ask, problems, task, e.answer, shots)
    logs.write(0, **before.logged("base_"))
    answers_file.write(folder, before, None)
  console.note("adapting ...")
  start = folder / "start"  # frozen leaves that cannot be made again from the base
  exp = experiment.make(config, prepared, None if new else start, early=True)
  del prepared, base  # the weights as they were loaded need not stay in memory
  if new and adapters.kept(exp.frozen):
    exp.save_adapter(start, exp.state.trainable)
  size = adapters.count(exp.adapted().params)
  state, exp = exp.state, exp._replace(state=None)
  mark, best = exp.meta["fingerprint"], loop.Best()
  if not new:
    state, extra = store.restore(state)
    adapter_files.check_base(extra["fingerprint"], mark, folder)
    best = loop.Best(**extra["best"])
    logs = log.Log(folder, int(state.step), config)
    console.note(f"resuming {folder} at step {int(state.step)}")

  # ---- compile
  example = report.example(config, exp.data.batches, exp.model.tokenizer)
  console.note("\n".join([*exp.data.summary, *example, "compiling ..."]))
  with console.waiting("compiling"):
    batch = sharding.place_batch(exp.batch(0))
    step_fn, compile_s = exp.compile_timed(state, batch)
  distributed.barrier("compiled")
  epoch = exp.data.batches.epoch_steps
  console.note(report.banner(config, size, step_fn, compile_s, epoch))

  # ---- loop
  net, examples = exp.model.transformer, exp.data.held_out
  means = evaluate.held_out_means(config, net, exp.objective, examples)

  def hold_out(state):
    return means(exp.adapted(state.trainable).params)

  def save(state, best):
    store.save(state, dict(fingerprint=mark, best=dataclasses.asdict(best)))

  def keep(trainable, step):
    exp.save_adapter(folder / "best", trainable, step=step)

  try:
    state = loop.Loop(
      config, step_fn, exp.frozen, exp.batch, exp.rate, logs, store, save,
      hold_out if examples else None, keep,
    ).run(state, best)  # fmt: skip
  except loop.Stopped as stopped:
    logs.close()
    console.note(f"{stopped}; run the same command to go on")
    sys.exit(128 + stopped.number)

  # ---- result
  step, kept, trainable = int(state.step), int(state.step), state.trainable
  if t.keep_best and best.step >= 0:
    kept = best.step
    trainable = adapter_files.load(folder / "best", trainable, mark)
  exp.save_adapter(folder / "adapter", trainable, step=kept)
  final = dict(
    final=True, adapter_step=kept, ended_early=best.ends(t.patience),
    eval_loss=best.loss if kept == best.step else logs.last("eval_loss"),
    first_eval_loss=logs.at(0, "eval_loss"),
    trainable_parameters=size.trainable, adapter_bytes=size.bytes,
    data=exp.data.summary, **report.peak_memory(step_fn, jax.local_devices()[0]),
  )  # fmt: skip
  if (share := logs.at(kept, "eval_accuracy")) is not None:  # of preferences
    final["eval_accuracy"] = share
  if task:
    ask = experiment.ask(config, exp.adapted(trainable), "adapted model")
    after = evaluate.answers(ask, problems, task, e.answer, shots)
    answers_file.write(folder, None, after)
    prompts = [r["prompt"] for r in after.records[:3] if "text" in r]
    final |= {name: logs.last(name) for name in after.logged("base_")}
    final |= after.logged() | dict(problems=len(problems), prompts=prompts)
  title = f"{config_file.names([path])[0]}: {size.trainable:,} trainable parameters"
  logs.plot(folder / "loss.png", title, final)
  logs.write(step, **final, wall_s=time.monotonic() - started)
  logs.close()
  console.say(report.result(logs.lines[-1]))
  console.say(report.written(folder, config))


if __name__ == "__main__":
  with cli.one_clear_line():
    main(sys.argv)
