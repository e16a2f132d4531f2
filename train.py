"""Fine-tunes a model: python train.py --config=configs/svft_banded.py

Read it top to bottom: config, base model, adapter, data, optimizer, resume, loop,
result. Running it again with the same --workdir resumes, or says that it is finished.
"""

import pathlib
import sys
import time

from absl import flags

from jaxpeft import cli, config_file
from jaxpeft.errors import InputError

config_file.define_flag()
cli.process_flags()
flags.DEFINE_string("workdir", None, "Where to write; default runs/NAME of the config.")
flags.register_validator("workdir", lambda path: path != "", "--workdir= is empty")


def main(argv):
  """The run."""
  started = time.time()
  parsed = config_file.parse(argv)
  if parsed.config is None:
    raise InputError("which run? Give --config=configs/NAME.py")
  config = parsed.config.lock()
  cli.join(parsed, config)  # before JAX has devices
  name = pathlib.Path(flags.FLAGS["config"].config_filename).stem

  # After the flags, so that a typing error is answered at once.
  import jax

  from jaxpeft import adapters, console, experiment, tree
  from jaxpeft.checkpoints import adapter as adapter_files
  from jaxpeft.checkpoints import run_state as checkpoints
  from jaxpeft.data import batches
  from jaxpeft.evaluation import evaluate
  from jaxpeft.generation import decode
  from jaxpeft.objectives import token_selection
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import log, optimizer, report
  from jaxpeft.training import step as training
  from jaxpeft.training import workdir as workdirs

  # ---- what is asked for, checked before anything is written -------------------------
  t, e = config.train, config.eval
  sampling = decode.Sampling(e.temperature, e.top_k, e.top_p)
  selection = token_selection.Selection(**config.tokens)
  tx, rate = optimizer.make(t.steps, **config.optim)
  experiment.check_options(config)  # reading a real model takes minutes
  experiment.enter_mesh(sharding.mesh(**config.mesh))
  rows = experiment.training_rows(config), experiment.held_out_rows(config)
  console.note(f"reading {config.model.source} ...")
  base = experiment.base(config)
  experiment.check(config, base, tx)
  data = experiment.data(config, base, *rows)
  first = training.split(data.batches[0], t.accumulate)
  workdir = workdirs.prepare(parsed.workdir or f"runs/{name}", config)
  finished = [line for line in log.read(workdir / "metrics.jsonl") if "final" in line]
  if finished:
    console.note(f"{workdir} is finished; next: python eval.py --ckpt={workdir}")
    console.say(report.result(finished[-1]))
    return
  store = checkpoints.Checkpoints(workdir / "checkpoints")
  new = store.latest is None
  logs = log.Log(workdir, step=-1) if new else None

  # ---- the base model's answers, then adapter and state, new or resumed --------------
  def answer(model, label):
    return evaluate.answers(
      model, data.problems, e.task, batch_size=e.batch_size, seed=config.seed,
      max_new_tokens=e.max_new_tokens, sampling=sampling, label=label,
    )  # fmt: skip

  scored = bool(e.task and data.problems)
  if new and scored:
    console.note(f"{len(data.problems)} answers of the base model ...")
    before = answer(base, "base model")
    samples = [record["text"] for record in before.records[:3]]
    logs.write(0, base_accuracy=before.accuracy[e.answer], base_samples=samples)
  console.note("adapting ...")
  run = experiment.adapt(config, base, data.batches if new else None,
                    None if new else workdir / "start")  # fmt: skip
  beside = adapters.kept(run.frozen)  # of the start: saved beside theta
  if new and beside:
    adapter_files.save(workdir / "start", run.trainable, run.meta, beside)
  size = adapters.count(run.model.params)
  state = training.init_state(run.trainable, tx)
  # The weights as they were loaded, and theta's start, need not stay in memory.
  base, run = base.replace(params=None), run.without_params()
  best = dict(step=-1, loss=float("inf"), waited=0)
  if not new:
    state, extra = store.restore(state)
    adapter_files.check_base(extra["fingerprint"], run.meta["fingerprint"], workdir)
    best = extra["best"]
    logs = log.Log(workdir, int(state.step))
    console.note(f"resuming {workdir} at step {int(state.step)}")

  # ---- compile -----------------------------------------------------------------------
  for line in data.summary:
    console.note(line)
  shown = batches.preview(data.batches[0], base.tokenizer, sys.stderr.isatty())
  console.note(f"first example, what is learned marked:\n{shown}\ncompiling ...")
  clock = time.time()
  jitted = training.make_step(
    run.model.transformer, tx, t.neftune, config.seed, selection
  )
  step_fn = jitted.lower(state, run.frozen, sharding.place_batch(first)).compile()
  distributed.barrier("compiled")
  eval_fn = training.make_eval(run.model.transformer)
  compile_s = time.time() - clock
  console.note(
    report.banner(config, size, step_fn, compile_s, data.batches.epoch_steps)
  )

  # ---- loop --------------------------------------------------------------------------
  stop = distributed.Stop()

  def save(state):
    store.save(state, dict(fingerprint=run.meta["fingerprint"], best=dict(best)))

  def save_adapter(directory, trainable, step):
    meta = run.meta | dict(step=step)
    adapter_files.save(workdir / directory, trainable, meta, beside)

  def hold_out(state, step):
    params = tree.combine(state.trainable, run.frozen)
    value = evaluate.loss(
      eval_fn,
      params,
      data.held_out,
      config.data.max_tokens,
      t.batch_size // t.accumulate,
    )
    logs.write(step, eval_loss=value)
    console.note(f"step {step}: held-out loss {value:.4f}")
    if value < best["loss"]:
      best.update(step=step, loss=value, waited=0)
      if t.keep_best:
        save_adapter("best", state.trainable, step)
    else:
      best["waited"] += 1

  def out_of_patience():
    return bool(t.patience) and best["waited"] >= t.patience

  step = int(state.step)
  bar, first_step, found = log.Progress(t.steps, step), step, []
  while step < t.steps and not out_of_patience():
    batch = training.split(data.batches[step], t.accumulate)
    state, metrics = step_fn(state, run.frozen, sharding.place_batch(batch))
    step += 1
    bar.count(batch["segment"])
    last = step == t.steps
    leave = stop.agreed(step)
    found.append(metrics["tokens"])  # stays on the device, until it is logged
    logged = step % t.log_every == 0 or last
    held = (t.eval_every and step % t.eval_every == 0) or last
    saved = (t.save_every and step % t.save_every == 0) or leave
    if logged or held or saved:
      metrics = {key: float(x) for key, x in metrics.items()}  # waits for the device
      if metrics["bad_step"] >= 0:
        store.close()
        logs.write(step, not_finite=metrics["bad_step"])
        good = "none yet" if store.latest is None else f"of step {store.latest}"
        raise InputError(
          f"loss, gradient or update is not finite at step {metrics['bad_step']:.0f}; "
          f"the last good checkpoint in {workdir} is {good}. Lower optimizer.lr "
          f"({config.optim.lr}) and start in another --workdir"
        )
    if logged:
      lr, loss = float(rate(step - 1)), metrics["loss"]
      speed = bar.show(step, loss, lr)
      logs.write(step, loss=loss, grad_norm=metrics["grad_norm"], lr=lr,
                 tokens=metrics["tokens"], tokens_per_s=speed)  # fmt: skip
      # A few steps may have no chosen token with a loss, by chance; all may not.
      found = [any(jax.device_get(found))]
      if not found[0] and step - first_step >= min(t.steps, 20):
        store.close()
        raise InputError(token_selection.NONE_SUPERVISED)
    if data.held_out and held:
      hold_out(state, step)
      bar.restart()
    if saved:
      save(state)
    if leave:
      store.close()
      bar.close()
      console.note(f"stopped by signal {stop.number} and saved at step {step}; "
               "run the same command to go on")  # fmt: skip
      sys.exit(128 + stop.number)
  bar.close()
  save(state)
  store.close()
  stop.close()  # all is saved; a rerun finishes

  # ---- result ------------------------------------------------------------------------
  kept, trainable = step, state.trainable
  if t.keep_best and best["step"] >= 0:
    kept = best["step"]
    trainable = adapter_files.load(workdir / "best", trainable, run.meta["fingerprint"])
  save_adapter("adapter", trainable, kept)
  live = report.live_peak_bytes(jax.local_devices()[0])
  final = dict(
    final=True, adapter_step=kept, ended_early=out_of_patience(),
    eval_loss=best["loss"] if kept == best["step"] else logs.last("eval_loss"),
    trainable_parameters=size.trainable, adapter_bytes=size.bytes,
    peak_memory_bytes=live or report.planned_bytes(step_fn),
    peak_memory_is="live" if live else "compiled",
  )  # fmt: skip
  if scored:
    params = tree.combine(trainable, run.frozen)
    after = answer(run.model.replace(params=params), "adapted model")
    final |= dict(
      base_accuracy=logs.last("base_accuracy"), base_samples=logs.last("base_samples"),
      accuracy=after.accuracy[e.answer], accuracy_ci95=after.interval[e.answer],
      problems=len(data.problems), samples=[r["text"] for r in after.records[:3]],
      prompts=[r["prompt"] for r in after.records[:3]],
    )  # fmt: skip
  logs.plot(workdir / "loss.png", f"{name}: {size.trainable:,} trainable parameters")
  logs.write(step, **final, wall_s=time.time() - started)
  logs.close()
  console.say(report.result(logs.lines[-1]))
  console.say(f"{workdir}: metrics.jsonl, loss.png, adapter/, tensorboard/\n"
          f"next: python eval.py --ckpt={workdir}")  # fmt: skip


if __name__ == "__main__":
  with cli.one_clear_line():
    main(sys.argv)
