"""Text that a run prints: a banner before training, and the result after it."""

import sys

from jaxpeft.console import human
from jaxpeft.data import batches
from jaxpeft.training import compiled_bytes


def example(config, batches_, tokenizer) -> list[str]:
  """The first training example as lines for the log; none without `log.example`."""
  if not config.log.example:
    return []
  shown = batches.preview(batches_[0], tokenizer, sys.stderr.isatty())
  return ["first example, supervised part marked:", shown]


def banner(config, size, compiled, compile_s: float, epoch_steps: float) -> str:
  """The banner: model, method, sizes, memory and compile time.

  Args:
    config: the run's config.
    size: a `Count` of the adapted model.
    compiled: the compiled training step.
    compile_s: seconds that compilation took.
    epoch_steps: steps per pass over the data.
  """
  toy = "a toy: it shows that the machinery works, not how good a method is"
  methods = ", ".join(adapter.name for adapter in config.adapt.values())
  steps = config.train.steps
  again = ""
  if epoch_steps < 1:
    again = (
      f"\nnote: the data fill {epoch_steps:.0%} of a batch, so a step repeats them; "
      f"lower train.batch_size ({config.train.batch_size}) or add data"
    )
  chosen = config.tokens.fraction
  chosen = f"; {chosen:.0%} of the tokens carry gradient" if chosen < 1 else ""
  about = f" ({toy})" if config.model.source == "embedded" else ""
  return (
    f"model {config.model.source}{about}: {human(size.total).strip()} numbers stored\n"
    f"method {methods}: {size.trainable:,} trainable = "
    f"{size.trainable / size.total:.2%}, adapter {human(size.bytes)}B{chosen}\n"
    f"step compiled in {compile_s:.1f} s, memory planned for it "
    f"{human(compiled_bytes.planned(compiled))}B; "
    f"{steps} steps are {steps / epoch_steps:.2f} epochs{again}"
  )


def result(final: dict) -> str:
  """The result: samples and accuracy of base and adapted model, time and peak memory.

  Args:
    final: the last line of metrics.jsonl.
  """
  lines = []
  columns = (final.get(key, ()) for key in ("prompts", "base_samples", "samples"))
  for prompt, before, after in zip(*columns, strict=True):
    lines.append(f"{prompt}\n  base:    {before!r}\n  adapted: {after!r}\n")
  first, last = final.get("first_eval_loss"), final.get("eval_loss")
  if first is not None and last is not None:
    worse = "; training did not lower it" if last >= first else ""
    lines.append(f"held-out loss: {first:.4f} before, {last:.4f} after{worse}")
  if final.get("eval_accuracy") is not None:
    lines.append(f"held-out accuracy of the order: {final['eval_accuracy']:.1%}")
  if "accuracy" in final:
    low, high = final["accuracy_ci95"]
    lines.append(
      f"accuracy: base {final['base_accuracy']:.1%} -> adapted "
      f"{final['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%} on "
      f"{asked(final)})"
    )
  if "macro_f1" in final:
    low, high = final["macro_f1_ci95"]
    before = final.get("base_macro_f1")
    before = "" if before is None else f"base {before:.3f} -> adapted "
    lines.append(
      f"macro-F1: {before}{final['macro_f1']:.3f} "
      f"(95 % interval {low:.3f} to {high:.3f})"
    )
  lines.append(
    f"final: step {final['step']}, {final['wall_s']:.0f} s, peak memory "
    f"{_memory(final)}"
  )
  return "\n".join(lines)


def asked(final: dict) -> str:
  """What the accuracy was measured on, e.g. "200 problems, 5-shot"."""
  shots = f", {final['shots']}-shot" if final.get("shots") else ""
  return f"{final['problems']} problems{shots}"


def _memory(final: dict) -> str:
  """What was planned and what was measured, e.g. "171 MiB planned for a step"."""
  mib = lambda name: f"{final[name] / 2**20:.0f} MiB"  # noqa: E731
  if final["peak_memory_is"] == "live":
    return f"{mib('peak_memory_bytes')} measured on the device"
  planned = f"{mib('peak_memory_bytes')} planned for a step"
  if "process_memory_bytes" not in final:  # of an older version
    return planned
  return f"{planned}, {mib('process_memory_bytes')} measured for the process"


def next_command(folder, config) -> str:
  """The command that uses a finished run: evaluation, or chat without held-out data."""
  command = "eval.py" if config.data.eval else "-m jaxpeft chat"
  return f"next: python {command} --ckpt={folder}"


def written(folder, config) -> str:
  """What a finished run has left in its directory, and the next command."""
  names = "metrics.jsonl loss.png answers.jsonl adapter tensorboard".split()
  found = [f"{x}/" if (folder / x).is_dir() else x for x in names]
  found = [x for x in found if (folder / x).exists()]
  return f"{folder}: {', '.join(found)}\n{next_command(folder, config)}"


def peak_memory(step_fn, device) -> dict:
  """Peak memory for metrics.jsonl.

  Returns:
    peak_memory_bytes: of the device.
    peak_memory_is: "live" if it was measured, with all that the device held; "planned"
      if the device measures nothing: what the compiler planned for a step.
    process_memory_bytes: most that the system had given to this process. On a CPU that
      is the plan and what the runtime adds: Python, the compiler, the data.
  """
  live = compiled_bytes.live_peak(device)
  return dict(
    peak_memory_bytes=live or compiled_bytes.planned(step_fn),
    peak_memory_is="live" if live else "planned",
    process_memory_bytes=compiled_bytes.process_peak(),
  )
