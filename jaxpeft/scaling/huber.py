"""What approach 3 minimizes, and how: Huber's loss of the logarithm of a sum of powers.

A law of K quantities x_1, ..., x_K (for Chinchilla N and D) predicts

  ln L = ln(exp(e) + sum_k exp(c_k - alpha_k ln x_k)).

The objective is the sum over points of Huber's loss of r = ln L_predicted - ln L: it is
r^2 / 2 up to delta, and linear beyond. It has flat valleys where a careless search
stops. So the search starts from many places with L-BFGS and ends with Newton's method.
It uses z = ln x - mean(ln x), for which the parameters hardly depend on each other. It
divides the objective by about delta^2, and computes in float64.

Axes: P points, K quantities, T = 2 K + 1 parameters (c_1, ..., alpha_1, ..., e), S
starts or samples. All functions are to be called in `jax.enable_x64(True)`.

Sources: Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

LANES = 128  # starts or samples of one compiled program
STEPS = 200  # of L-BFGS
NEWTON = 100
# Damping of Newton's steps: each step tries all of them, and keeps the best.
_DAMPING = (1e-10, 1e-6, 1e-4, 1e-2, 1.0, 100.0)
_MAJORIZED = (0.0, 0.3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """The arrays of a fit.

  z: float64[P, K], ln x - mean(ln x).
  y: float64[P], ln L.
  weights: float64[P], how often a point counts; 0 for what only fills the array.
  delta: float64[].
  """

  z: jax.Array
  y: jax.Array
  weights: jax.Array
  delta: jax.Array


def problem(logs: np.ndarray, y: np.ndarray, delta: float) -> Problem:
  """A problem of ln x, float64[P, K], and ln L, float64[P], filled to few sizes."""
  z = logs - logs.mean(0)
  more = 64 * 2 ** max(0, int(np.ceil(np.log2(len(y) / 64)))) - len(y)
  fill = functools.partial(np.pad, mode="constant")
  return Problem(
    jnp.asarray(fill(z, [(0, more), (0, 0)])), jnp.asarray(fill(y, (0, more))),
    jnp.asarray(fill(np.ones(len(y)), (0, more))), jnp.asarray(delta, jnp.float64),
  )  # fmt: skip


def log_loss(theta, z):
  """ln L of points, float64[P], for parameters float64[T]."""
  k = z.shape[1]
  terms = theta[:k] - theta[k : 2 * k] * z
  floor = jnp.broadcast_to(theta[2 * k :], (len(z), 1))
  return jax.nn.logsumexp(jnp.concatenate([terms, floor], 1), axis=1)


def value(theta, of: Problem):
  """The objective, float64[]: a sum over points, not divided by anything."""
  r = jnp.abs(log_loss(theta, of.z) - of.y)
  each = jnp.where(r <= of.delta, r**2 / 2, of.delta * (r - of.delta / 2))
  return (of.weights * each).sum()


gradient = jax.jit(jax.grad(value))


def _unit(of: Problem):
  """What the objective is divided by, so that its numbers are neither tiny nor huge."""
  return of.delta * jnp.minimum(of.delta, 1e-2)


@functools.partial(jax.jit, static_argnames="mean")
def descend(of: Problem, starts, steps, tolerance, mean: bool = False):
  """(parameters float64[S, T], steps taken) of L-BFGS from each start.

  Args:
    of: the problem.
    starts: float64[S, T].
    steps: the limit.
    tolerance: where to stop: the largest part of the gradient of the objective as it is
      minimized, which is divided by delta^2 unless `mean`.
    mean: minimize the mean over points, as many programs do. Its gradient is so small
      that a usual tolerance ends the search at once; only for showing that.
  """
  unit = of.weights.sum() if mean else _unit(of)
  optimizer = optax.lbfgs(
    memory_size=10,
    linesearch=optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
  )

  def scaled(theta):
    return value(theta, of) / unit

  both = optax.value_and_grad_from_state(scaled)

  def step(carry):
    theta, state, taken, _ = carry
    now, slope = both(theta, state=state)
    update, state = optimizer.update(
      slope, state, theta, value=now, grad=slope, value_fn=scaled
    )
    return theta + update, state, taken + 1, optax.tree.get(state, "grad")

  def goes_on(carry):
    _, _, taken, slope = carry
    return (taken < steps) & (jnp.abs(slope).max() > tolerance)

  def one(start):
    begin = (start, optimizer.init(start), 0, jax.grad(scaled)(start))
    theta, _, taken, _ = jax.lax.while_loop(goes_on, step, begin)
    return theta, taken

  return jax.vmap(one)(starts)


@jax.jit
def refine(of: Problem, starts, weights):
  """(parameters float64[S, T], objectives float64[S]) of Newton's method.

  Each step tries several damped steps with the second derivative, and with an upper
  bound of it that never overshoots (iteratively reweighted least squares), and takes
  the lowest. It ends where none is lower.

  Args:
    of: the problem; its own weights are not used.
    starts: float64[S, T].
    weights: float64[S, P], of the points in each sample.
  """

  def one(start, weights):
    own = dataclasses.replace(of, weights=weights)

    def step(carry):
      theta, now, taken, _ = carry
      slope, bound, second = _derivatives(theta, own)
      scale = jnp.diag(jnp.diag(bound)) + 1e-12 * jnp.eye(len(theta))

      def towards(matrix, damping):
        move = jnp.linalg.solve(matrix + damping * scale, slope)
        return theta - jnp.where(jnp.isfinite(move), move, 0.0)

      tried = jnp.concatenate(
        [
          jax.vmap(lambda x: towards(bound, x))(jnp.asarray(_MAJORIZED)),
          jax.vmap(lambda x: towards(second, x))(jnp.asarray(_DAMPING)),
        ]
      )
      found = jax.vmap(lambda x: value(x, own))(tried)
      found = jnp.where(jnp.isfinite(found), found, jnp.inf)
      best = found.argmin()
      lower = found[best] < now
      gain = jnp.where(lower, (now - found[best]) / now, 0.0)
      return (
        jnp.where(lower, tried[best], theta), jnp.where(lower, found[best], now),
        taken + 1, gain,
      )  # fmt: skip

    def goes_on(carry):
      return (carry[2] < NEWTON) & (carry[3] > 1e-15)

    begin = (start, value(start, own), 0, jnp.inf)
    return jax.lax.while_loop(goes_on, step, begin)[:2]

  return jax.vmap(one)(starts, weights)


def _derivatives(theta, of: Problem):
  """(gradient, an upper bound of the second derivative, the second derivative)."""
  r = log_loss(theta, of.z) - of.y
  jacobian = jax.jacfwd(log_loss)(theta, of.z)
  pull = of.weights * jnp.clip(r, -of.delta, of.delta)
  bound = of.weights * jnp.minimum(1.0, of.delta / jnp.maximum(jnp.abs(r), 1e-300))
  inside = of.weights * (jnp.abs(r) <= of.delta)

  def slope(theta):
    return jax.vjp(lambda x: log_loss(x, of.z), theta)[1](pull)[0]

  bent = jax.jacfwd(slope)(theta)
  return (
    jacobian.T @ pull, jacobian.T @ (bound[:, None] * jacobian),
    jacobian.T @ (inside[:, None] * jacobian) + bent,
  )  # fmt: skip


derivatives = jax.jit(_derivatives)


def minimize(of: Problem, starts: np.ndarray, tolerance: float = 1e-6, steps=STEPS):
  """(parameters float64[S, T], objectives float64[S]) from each start, lowest first.

  L-BFGS from each start, then Newton's method.
  """
  found, values = [], []
  for part in lanes(starts):
    theta, _ = descend(of, part, steps, tolerance)
    weights = jnp.broadcast_to(of.weights, (len(part), len(of.weights)))
    theta, objective = refine(of, theta, weights)
    found.append(np.asarray(theta))
    values.append(np.asarray(objective))
  theta = np.concatenate(found)[: len(starts)]
  objective = np.concatenate(values)[: len(starts)]
  objective = np.where(np.isfinite(objective), objective, np.inf)
  order = np.argsort(objective, kind="stable")
  return theta[order], objective[order]


def lane(rows: int) -> int:
  """The size of a part of `rows` rows: a power of 2, so that few are compiled."""
  return min(LANES, max(8, 2 ** (rows - 1).bit_length()))


def lanes(rows: np.ndarray):
  """The rows in parts of a size; copies of the last row fill the last part."""
  size = lane(len(rows))
  rows = np.pad(rows, [(0, -len(rows) % size), (0, 0)], "edge")
  return rows.reshape(-1, size, rows.shape[1])


def starts(of: Problem, count: int = LANES, seed: int = 0) -> np.ndarray:
  """float64[count, T]: where to begin: floors, shares of terms and exponents at random.

  Each start predicts about the right loss in the middle of the data. The floor is 5 to
  95 % of the lowest loss.
  """
  rng = np.random.default_rng(seed)
  used = np.asarray(of.weights) > 0
  y, k = np.asarray(of.y)[used], of.z.shape[1]
  floor = np.exp(y.min()) * rng.uniform(0.05, 0.95, (count, 1))
  shares = rng.dirichlet(np.ones(k), count)
  terms = np.log(np.maximum(np.exp(np.median(y)) - floor, 1e-3) * shares)
  return np.concatenate([terms, rng.uniform(0.05, 1.2, (count, k)), np.log(floor)], 1)
