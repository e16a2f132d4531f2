"""The training loop: steps, log lines, held-out losses, checkpoints, and when to stop.

The host prepares and dispatches a step while the device computes the one before. It
never runs further ahead, so that a signal is answered after the step in flight.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.objectives import token_selection
from jaxpeft.parallel import distributed, sharding
from jaxpeft.training import log


class Stopped(Exception):
  """A signal stopped the run, after its state was saved."""

  def __init__(self, step: int, number: int):
    super().__init__(f"stopped by signal {number} and saved at step {step}")
    self.number = number


@dataclasses.dataclass
class Best:
  """The best held-out loss so far, which a checkpoint stores."""

  step: int = -1  # -1: none yet
  loss: float = float("inf")
  waited: int = 0  # held-out losses since then

  def update(self, step: int, loss: float) -> bool:
    """Takes note of a held-out loss; whether it is the best one."""
    if loss < self.loss:
      self.step, self.loss, self.waited = step, loss, 0
      return True
    self.waited += 1
    return False

  def ends(self, patience: int) -> bool:
    """Whether the patience is exhausted; 0 never is."""
    return bool(patience) and self.waited >= patience


@dataclasses.dataclass(frozen=True)
class Loop:
  """What the loop works with.

  Attributes:
    config: config of the run.
    step_fn: (state, frozen, batch) -> (state, metrics), compiled.
    frozen: the frozen partition.
    batch: step -> microbatches on the host.
    rate: step -> learning rate.
    logs: the run's `Log`.
    store: the run's checkpoints, to close them and to name the latest.
    save: (state, best) -> None; starts to write a checkpoint.
    hold_out: state -> {"loss": held-out loss, and other means}; None if there are no
      held-out examples.
    keep: called with (trainable, step) when the held-out loss is the best so far.
  """

  config: Any
  step_fn: Callable
  frozen: Any
  batch: Callable
  rate: Callable
  logs: log.Log
  store: Any
  save: Callable
  hold_out: Callable | None
  keep: Callable

  def run(self, state, best: Best):
    """The state after all steps, or after the patience ran out; all is saved.

    Raises:
      Stopped: a signal asked for it; the state is saved.
      InputError: a step that is not finite, or no token that could be learned from.
    """
    t = self.config.train
    step = first = int(state.step)
    stop, found = distributed.Stop(), []
    hold_out = self.hold_out
    if hold_out and not step and t.eval_first:
      self._note_held_out(0, hold_out(state))
    bar, computing = log.Progress(t.steps, step), None
    while step < t.steps and not best.ends(t.patience):
      batch = self.batch(step)
      state, metrics = self.step_fn(state, self.frozen, sharding.place_batch(batch))
      step += 1
      jax.block_until_ready(computing)  # the step before: this one follows it at once
      computing = metrics["tokens"]
      bar.count(batch["segment"])
      last, leave = step == t.steps, stop.agreed(step)
      found.append(metrics["tokens"])  # stays on the device until it is logged
      logged = step % t.log_every == 0 or last
      held = (t.eval_every and step % t.eval_every == 0) or last
      saved = (t.save_every and step % t.save_every == 0) or leave
      if logged or held or saved:
        metrics = {
          name: float(x) for name, x in metrics.items()
        }  # waits for the device
        self._check_finite(step, metrics)
      if logged:
        self._log(step, metrics, bar)
        # Some steps may by chance choose no token with a loss; all of them must not.
        found = [any(jax.device_get(found))]
        if not found[0] and step - first >= min(t.steps, 20):
          self.store.close()
          raise InputError(token_selection.NONE_SUPERVISED)
      if hold_out and held:
        value = hold_out(state)
        self._note_held_out(step, value)
        if best.update(step, value["loss"]) and t.keep_best:
          self.keep(state.trainable, step)
        bar.restart()
      if saved:
        self.save(state, best)
      if leave:
        self.store.close()
        bar.close()
        raise Stopped(step, stop.number or 0)
    bar.close()
    self.save(state, best)
    self.store.close()
    stop.close()  # all is saved: from here on, the same command finishes the run
    return state

  def _check_finite(self, step: int, metrics: dict):
    if metrics["bad_step"] < 0:
      return
    self.store.close()
    self.logs.write(step, not_finite=metrics["bad_step"])
    latest = self.store.latest
    good = "none yet" if latest is None else f"of step {latest}"
    raise InputError(
      f"loss, gradient or update is not finite at step {metrics['bad_step']:.0f}; the "
      f"last good checkpoint is {good}. Lower optim.lr ({self.config.optim.lr}) and "
      "start in another --workdir"
    )

  def _log(self, step: int, metrics: dict, bar):
    lr = float(self.rate(step - 1))
    speed = bar.show(step, metrics["loss"], lr)
    shown = {name: x for name, x in metrics.items() if name != "bad_step"}
    self.logs.write(step, **shown, lr=lr, tokens_per_s=speed)

  def _note_held_out(self, step: int, value: dict[str, float]):
    self.logs.write(step, **{f"eval_{name}": x for name, x in value.items()})
    shown = [f"{name} {x:.4f}" for name, x in value.items()]
    console.note(f"step {step}: held-out {', '.join(shown)}")
