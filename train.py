"""Fine-tunes a model: python train.py --config=configs/svft_banded.py

Read it top to bottom: config, base model, adapter, data, optimiser, resume, loop,
result. Running it again with the same --workdir resumes, or says that it is finished.
"""

import pathlib
import signal
import sys
import time

from absl import flags

from jaxpeft import cli
from jaxpeft.errors import InputError

cli.config_flag()
flags.DEFINE_string("workdir", None, "Where to write; default runs/NAME of the config.")


def main(argv):
  """The run."""
  started = time.time()
  parsed = cli.parse(argv)
  if parsed.config is None:
    raise InputError("which run? Give --config=configs/NAME.py")
  config = parsed.config.lock()
  name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
  path = parsed.workdir or f"runs/{name}"

  # After the flags, so that a typing error is answered at once.
  import jax

  from jaxpeft import build, evaluate, log, optim, partitions, sample, training
  from jaxpeft.adapters import count
  from jaxpeft.checkpoints import adapter as adapter_files
  from jaxpeft.checkpoints import state as checkpoints
  from jaxpeft.data import batches

  # ---- what is asked for, checked before anything is written -------------------------
  t, e = config.train, config.eval
  sampling = sample.Sampling(e.temperature, e.top_k, e.top_p)
  tx, rate = optim.make(t.steps, **config.optim)
  base = build.base(config)
  data = build.data(config, base.tokenizer)
  first = training.split(data.batches[0], t.accumulate)
  workdir = cli.prepare_workdir(path, config)
  finished = [line for line in log.read(workdir / "metrics.jsonl") if "final" in line]
  if finished:
    log.note(f"{workdir} is finished; next: python eval.py --ckpt={workdir}")
    _print_result(finished[-1])
    return
  store = checkpoints.Checkpoints(workdir / "checkpoints")
  logs = log.Log(workdir, step=-1 if store.latest is None else store.latest)

  def answer(model, label):
    return evaluate.answers(
      model, data.problems, e.task, batch_size=e.batch_size, seed=config.seed,
      max_new_tokens=e.max_new_tokens, sampling=sampling, label=label,
    )  # fmt: skip

  scored = bool(e.task and data.problems)
  if store.latest is None and scored:
    before = answer(base, "base model")
    samples = [r["text"] for r in before.records[:3]]
    logs.write(0, base_accuracy=before.accuracy[e.answer], base_samples=samples)

  # ---- adapter, state, resume --------------------------------------------------------
  run = build.adapt(config, base)
  size = count(run.model.params)
  state = training.init_state(run.trainable, tx)
  best = dict(step=-1, loss=float("inf"), waited=0)
  if store.latest is not None:
    state, extra = store.restore(state)
    adapter_files.check_base(extra["fingerprint"], run.fingerprint, workdir)
    best = extra["best"]
    log.note(f"resuming {workdir} at step {int(state.step)}")

  def model_of(trainable):
    return run.model.replace(params=partitions.combine(trainable, run.frozen))

  def save_adapter(directory, trainable, step):
    meta = dict(format=1, step=step, adapt=cli.to_json(config.adapt), seed=config.seed,
                base=config.model.source, fingerprint=run.fingerprint)  # fmt: skip
    adapter_files.save(workdir / directory, trainable, meta)

  # ---- compile ----------------------------------------------------------------------
  for line in data.summary:
    log.note(line)
  log.note(f"first example, what is learned marked:\n"
           f"{batches.preview(data.batches[0], base.tokenizer, sys.stderr.isatty())}")  # fmt: skip
  clock = time.time()
  jitted = training.make_step(run.model.transformer, tx)
  step_fn = jitted.lower(state, run.frozen, first).compile()
  eval_fn = training.make_eval(run.model.transformer)
  plan = step_fn.memory_analysis()
  planned = (
    plan.argument_size_in_bytes + plan.output_size_in_bytes
    - plan.alias_size_in_bytes + plan.temp_size_in_bytes
  )  # fmt: skip
  toy = config.model.source == "embedded"
  log.note(
    f"model {config.model.source}, {log.human(size.total)}numbers stored"
    f"{' (a toy: it shows that the machinery works, not how good a method is)' * toy}\n"
    f"method {', '.join(a.name for a in config.adapt.values())}: "
    f"{size.trainable:,} trainable = {size.trainable / size.total:.2%}, "
    f"adapter {log.human(size.bytes)}B\n"
    f"step compiled in {time.time() - clock:.1f} s, needs {log.human(planned)}B; "
    f"{t.steps} steps are {t.steps / data.batches.epoch_steps:.2f} epochs"
  )

  # ---- loop -------------------------------------------------------------------------
  stop = []  # signals received: the loop saves and leaves at the next step
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda received, _: stop.append(received))

  def save(state):
    store.save(state, dict(fingerprint=run.fingerprint, best=best))

  def evaluate_loss(state, step):
    params = partitions.combine(state.trainable, run.frozen)
    value = evaluate.loss(
      eval_fn, params, data.held_out, config.data.max_tokens, t.batch_size
    )
    logs.write(step, eval_loss=value)
    if value < best["loss"]:
      best.update(step=step, loss=value, waited=0)
      if t.keep_best:
        save_adapter("best", state.trainable, step)
    else:
      best["waited"] += 1
    return value

  step = int(state.step)
  bar = log.bar(t.steps, step, "step")
  clock, tokens = time.time(), 0.0
  ended_early = bool(t.patience) and best["waited"] >= t.patience
  while step < t.steps and not ended_early:
    batch = training.split(data.batches[step], t.accumulate)
    state, metrics = step_fn(state, run.frozen, batch)
    step += 1
    tokens += float(batch["segment"].astype(bool).sum())
    bar.update()
    if step % t.log_every == 0 or step == t.steps:
      metrics = {k: float(x) for k, x in metrics.items()}  # waits for the device
      if metrics["bad_step"] >= 0:
        save(state)
        store.close()
        raise InputError(
          f"the loss or its gradient is not finite at step {metrics['bad_step']:.0f}; "
          f"the state before it is saved in {workdir}. Lower optim.lr "
          f"({config.optim.lr}), or start again in another --workdir"
        )
      speed = tokens / (time.time() - clock)
      clock, tokens = time.time(), 0.0
      lr = float(rate(step - 1))
      logs.write(step, loss=metrics["loss"], grad_norm=metrics["grad_norm"],
                 lr=lr, tokens_per_s=speed)  # fmt: skip
      bar.set_postfix_str(f"loss {metrics['loss']:.4f} {log.human(speed)}tokens/s")
      if bar.disable:
        left = (t.steps - step) * (time.time() - started) / max(step, 1)
        log.note(f"step {step}/{t.steps} loss {metrics['loss']:.4f} lr {lr:.2g} "
                 f"{log.human(speed)}tokens/s, about {left:.0f} s left")  # fmt: skip
    if data.held_out and t.eval_every and step % t.eval_every == 0:
      value = evaluate_loss(state, step)
      log.note(f"step {step}: held-out loss {value:.4f}")
      ended_early = bool(t.patience) and best["waited"] >= t.patience
      clock, tokens = time.time(), 0.0
    if step % t.save_every == 0 or stop:
      save(state)
    if stop:
      store.close()
      bar.close()
      log.note(f"stopped by signal {stop[0]} and saved at step {step}; "
               "run the same command to go on")  # fmt: skip
      sys.exit(128 + stop[0])
  bar.close()

  # ---- result -----------------------------------------------------------------------
  if data.held_out and (not t.eval_every or step % t.eval_every):
    evaluate_loss(state, step)
  save(state)
  store.close()
  trainable = state.trainable
  if t.keep_best and best["step"] >= 0:
    trainable = adapter_files.load(workdir / "best", trainable, run.fingerprint)
  save_adapter("adapter", trainable, best["step"] if t.keep_best else step)
  live = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  result = dict(
    final=True, adapter_step=best["step"] if t.keep_best else step, ended_early=ended_early,
    eval_loss=logs.last("eval_loss"), trainable_parameters=size.trainable,
    adapter_bytes=size.bytes, peak_memory_bytes=live or planned,
    peak_memory_is="live" if live else "compiled",
  )  # fmt: skip
  if scored:
    after = answer(model_of(trainable), "adapted model")
    result |= dict(
      base_accuracy=logs.last("base_accuracy"),
      accuracy=after.accuracy[e.answer], accuracy_ci95=after.interval[e.answer],
      problems=len(data.problems), base_samples=logs.last("base_samples"),
      samples=[r["text"] for r in after.records[:3]],
      prompts=[r["prompt"] for r in after.records[:3]],
    )  # fmt: skip
  logs.plot(workdir / "loss.png", f"{name}: {size.trainable:,} trainable parameters")
  logs.write(step, **result, wall_s=time.time() - started)
  logs.close()
  _print_result(logs.lines[-1])
  print(f"{workdir}: metrics.jsonl, loss.png, adapter/, tensorboard/\n"
        f"next: python eval.py --ckpt={workdir}")  # fmt: skip


def _print_result(final: dict):
  """The final line of metrics.jsonl, for people."""
  for prompt, before, after in zip(
    *(final.get(k, ()) for k in ("prompts", "base_samples", "samples")), strict=True
  ):
    print(f"\n{prompt}\n  base:    {before!r}\n  adapted: {after!r}")
  if "accuracy" in final:
    low, high = final["accuracy_ci95"]
    print(
      f"\naccuracy: base {final['base_accuracy']:.1%} -> adapted "
      f"{final['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%} on "
      f"{final['problems']} problems)"
    )
  print(f"final: step {final['step']}, {final['wall_s']:.0f} s, peak memory "
        f"{final['peak_memory_bytes'] / 2**20:.0f} MiB ({final['peak_memory_is']})")  # fmt: skip


if __name__ == "__main__":
  with cli.one_clear_line():
    main(sys.argv)
