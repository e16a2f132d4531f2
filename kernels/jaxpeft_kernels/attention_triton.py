"""The Triton kernels of `attention`, whose docstring explains stamps and bounds.

Imports triton.

Each program owns one tile of queries (`forward`, `backward_q`) or of keys
(`backward_kv`) of one head. It walks over the tiles of the other kind that its four
bounds name, in three runs: run 0 from bound 0 to bound 1, and so on. In the middle run
every query sees every key, so stamps are neither loaded nor compared, and no row is
outside an array. If one loop masked everything, it would need 1.4 to 1.9 times as many
instructions there.

Only one program writes a tile of the result, so its sums always have the same order,
and two runs give the same bits. Programs of one head follow each other, so the keys or
queries of this head stay in the L2 cache. Exponentials are computed as powers of 2: a
GPU has an instruction for these only.

Axes: B batch, H query heads, K key/value heads, G = H / K, T queries, S keys, N
head_dim. WIDE is N rounded up to a power of 2, which Triton's tiles need. ROWS and KEYS
are a tile's queries and keys. Arrays are contiguous in the order of their axes.
"""

import triton
import triton.language as tl

# tf32x3 affects only float32: plain TF32 would round, IEEE would spill registers.
_EXACT = tl.constexpr("tf32x3")
_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-1.0e30)  # not -inf: the difference of two would be NaN
_NO_QUERY = tl.constexpr(-1)  # stamps of padding, see `attention`
_NO_KEY = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _load(base, row, SIZE: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
          INSIDE: tl.constexpr):  # fmt: skip
  """[rows, WIDE] of an array [SIZE, N], 0 beyond N, and beyond SIZE unless INSIDE."""
  column = tl.arange(0, WIDE)[None, :]
  at = base + row[:, None] * N + column
  if INSIDE:
    if N == WIDE:
      return tl.load(at)
    return tl.load(at, mask=column < N, other=0.0)
  return tl.load(at, mask=(row < SIZE)[:, None] & (column < N), other=0.0)


@triton.jit
def _store(base, row, x, SIZE: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr):
  """Writes x [rows, WIDE] to an array [SIZE, N], in the array's dtype."""
  column = tl.arange(0, WIDE)[None, :]
  inside = (row < SIZE)[:, None] & (column < N)
  at = base + row[:, None] * N + column
  tl.store(at, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _scores(a, b, SCALE: tl.constexpr, CAP: tl.constexpr):
  """Scores [X, Y] of a [X, WIDE] and b [Y, WIDE] times log2(e), and the cap's slope."""
  s = tl.dot(a, tl.trans(b), input_precision=_EXACT)
  if CAP == 0:
    s, slope = s * (SCALE * _LOG2_E), 1.0
  else:
    # Triton has no tanh. This one is exact to 1e-7 (of 1), so scores to 1e-7 of CAP.
    tanh = 1 - 2 / (1 + tl.exp2(s * (2 * SCALE / CAP * _LOG2_E)))
    s, slope = tanh * (CAP * _LOG2_E), 1 - tanh * tanh
  return s, slope


@triton.jit
def _sees(query, key, window):
  """Whether queries see keys, by their stamps: 0 <= query - key < window."""
  back = (query - key).to(tl.uint32, bitcast=True)  # what is negative becomes huge
  return back < window.to(tl.uint32, bitcast=True)


@triton.jit
def _forward_run(
  first, end, top, total, out, q, q_stamp, k, v, k_stamps, window,
  S: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr,
  SCALE: tl.constexpr, CAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
  for j in range(first, end):
    key = j * KEYS + tl.arange(0, KEYS)
    s, _ = _scores(q, _load(k, key, S, N, WIDE, not MASKED), SCALE, CAP)
    if MASKED:
      k_stamp = tl.load(k_stamps + key, mask=key < S, other=_NO_KEY)
      seen = _sees(q_stamp[:, None], k_stamp[None, :], window)
      s = tl.where(seen, s, _LOWEST)
    new_top = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - new_top[:, None])
    if MASKED:  # of a query that has seen nothing yet, new_top is _LOWEST, too
      p = tl.where(seen, p, 0.0)
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    vj = _load(v, key, S, N, WIDE, not MASKED)
    p = p.to(v.dtype.element_ty)
    out = tl.dot(p, vj, out * shrink[:, None], input_precision=_EXACT)
    top = new_top
  return top, total, out


@triton.jit
def forward(
  q, k, v, q_stamps, k_stamps, bounds, window, out, lse,
  H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
  WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
  SCALE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
  """Writes out [B, H, T, N] and lse float32[B, H, T], the log of softmax's denominator.

  A query that sees no key gets 0 and _LOWEST. Grid: B H times tiles of T.
  """
  tiles: tl.constexpr = (T + ROWS - 1) // ROWS
  # int64: an array may have more than 2^31 numbers.
  head = (tl.program_id(0) // tiles).to(tl.int64)
  batch = head // H
  i = tiles - 1 - tl.program_id(0) % tiles  # late queries see the most: they are first
  row = i * ROWS + tl.arange(0, ROWS)
  k += head // G * (S * N)
  v += head // G * (S * N)
  k_stamps += batch * S
  bounds += (batch * tiles + i) * 4
  qi = _load(q + head * (T * N), row, T, N, WIDE, False)
  q_stamp = tl.load(q_stamps + batch * T + row, mask=row < T, other=_NO_QUERY)
  reach = tl.load(window)
  top = tl.full((ROWS,), _LOWEST, tl.float32)
  total = tl.zeros((ROWS,), tl.float32)
  sums = tl.zeros((ROWS, WIDE), tl.float32)
  for run in tl.static_range(3):
    top, total, sums = _forward_run(
      tl.load(bounds + run), tl.load(bounds + run + 1), top, total, sums, qi, q_stamp,
      k, v, k_stamps, reach, S, N, WIDE, KEYS, SCALE, CAP, run != 1,
    )  # fmt: skip
  some = total > 0
  total = tl.where(some, total, 1.0)
  _store(out + head * (T * N), row, sums / total[:, None], T, N, WIDE)
  log = tl.where(some, (top + tl.log2(total)) / _LOG2_E, _LOWEST)
  tl.store(lse + head * T + row, log, mask=row < T)


@triton.jit
def _dq_run(
  first, end, dq, q, g, lse, delta, q_stamp, k, v, k_stamps, window,
  S: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr,
  SCALE: tl.constexpr, CAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
  for j in range(first, end):
    key = j * KEYS + tl.arange(0, KEYS)
    kj = _load(k, key, S, N, WIDE, not MASKED)
    s, slope = _scores(q, kj, SCALE, CAP)
    p = tl.exp2(s - lse[:, None])
    if MASKED:
      k_stamp = tl.load(k_stamps + key, mask=key < S, other=_NO_KEY)
      p = tl.where(_sees(q_stamp[:, None], k_stamp[None, :], window), p, 0.0)
    vj = _load(v, key, S, N, WIDE, not MASKED)
    dp = tl.dot(g, tl.trans(vj), input_precision=_EXACT)
    ds = (p * (dp - delta[:, None]) * slope).to(k.dtype.element_ty)
    dq = tl.dot(ds, kj, dq, input_precision=_EXACT)
  return dq


@triton.jit
def backward_q(
  q, k, v, g, lse, delta, q_stamps, k_stamps, bounds, window, dq,
  H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
  WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
  SCALE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
  """Writes the queries' gradient dq [B, H, T, N]. Grid: B H times tiles of T.

  Args:
    g: gradient of `forward`'s out.
    lse: float32[B, H, T], over the keys of all parts.
    delta: float32[B, H, T], sum of g * out over N.
  """
  tiles: tl.constexpr = (T + ROWS - 1) // ROWS
  head = (tl.program_id(0) // tiles).to(tl.int64)
  batch = head // H
  i = tiles - 1 - tl.program_id(0) % tiles
  row = i * ROWS + tl.arange(0, ROWS)
  k += head // G * (S * N)
  v += head // G * (S * N)
  k_stamps += batch * S
  bounds += (batch * tiles + i) * 4
  qi = _load(q + head * (T * N), row, T, N, WIDE, False)
  gi = _load(g + head * (T * N), row, T, N, WIDE, False)
  li = tl.load(lse + head * T + row, mask=row < T, other=0.0) * _LOG2_E
  di = tl.load(delta + head * T + row, mask=row < T, other=0.0)
  q_stamp = tl.load(q_stamps + batch * T + row, mask=row < T, other=_NO_QUERY)
  reach = tl.load(window)
  sums = tl.zeros((ROWS, WIDE), tl.float32)
  for run in tl.static_range(3):
    sums = _dq_run(
      tl.load(bounds + run), tl.load(bounds + run + 1), sums, qi, gi, li, di, q_stamp,
      k, v, k_stamps, reach, S, N, WIDE, KEYS, SCALE, CAP, run != 1,
    )  # fmt: skip
  _store(dq + head * (T * N), row, sums * SCALE, T, N, WIDE)


@triton.jit
def _dkv_run(
  first, end, dk, dv, k, v, k_stamp, q, g, lse, delta, q_stamps, window,
  G: tl.constexpr, T: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
  ROWS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
  # Scores are [keys, queries], as the two sums over queries need them. The tiles of all
  # G heads are one loop: with a loop over heads around it, registers would spill.
  tiles = end - first
  for at in range(G * tiles):
    i, head = first + at, 0
    if G > 1:
      i, head = first + at % tiles, at // tiles
    row = i * ROWS + tl.arange(0, ROWS)
    qi = _load(q + head * (T * N), row, T, N, WIDE, not MASKED)
    s, slope = _scores(k, qi, SCALE, CAP)
    if MASKED:
      li = tl.load(lse + head * T + row, mask=row < T, other=0.0)
      di = tl.load(delta + head * T + row, mask=row < T, other=0.0)
    else:
      li = tl.load(lse + head * T + row)
      di = tl.load(delta + head * T + row)
    p = tl.exp2(s - (li * _LOG2_E)[None, :])
    if MASKED:
      q_stamp = tl.load(q_stamps + row, mask=row < T, other=_NO_QUERY)
      p = tl.where(_sees(q_stamp[None, :], k_stamp[:, None], window), p, 0.0)
    gi = _load(g + head * (T * N), row, T, N, WIDE, not MASKED)
    dv = tl.dot(p.to(g.dtype.element_ty), gi, dv, input_precision=_EXACT)
    dp = tl.dot(v, tl.trans(gi), input_precision=_EXACT)
    ds = (p * (dp - di[None, :]) * slope).to(q.dtype.element_ty)
    dk = tl.dot(ds, qi, dk, input_precision=_EXACT)
  return dk, dv


@triton.jit
def backward_kv(
  q, k, v, g, lse, delta, q_stamps, k_stamps, bounds, window, dk, dv,
  H: tl.constexpr, G: tl.constexpr, T: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
  WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
  SCALE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
  """Writes dk and dv [B, K, S, N], sums over G query heads. Grid: B K times tiles of S.

  Args as `backward_q`'s, but bounds name the tiles of queries that see a tile of keys.
  """
  tiles: tl.constexpr = (S + KEYS - 1) // KEYS
  kv_head = (tl.program_id(0) // tiles).to(tl.int64)
  batch = kv_head // (H // G)
  j = tl.program_id(0) % tiles  # early keys are seen the most
  key = j * KEYS + tl.arange(0, KEYS)
  at = kv_head * (S * N)
  q_stamps += batch * T
  bounds += (batch * tiles + j) * 4
  kj = _load(k + at, key, S, N, WIDE, False)
  vj = _load(v + at, key, S, N, WIDE, False)
  k_stamp = tl.load(k_stamps + batch * S + key, mask=key < S, other=_NO_KEY)
  reach = tl.load(window)
  dkj = tl.zeros((KEYS, WIDE), tl.float32)
  dvj = tl.zeros((KEYS, WIDE), tl.float32)
  of_queries = kv_head * G * T  # its heads of queries follow each other
  for run in tl.static_range(3):
    dkj, dvj = _dkv_run(
      tl.load(bounds + run), tl.load(bounds + run + 1), dkj, dvj, kj, vj, k_stamp,
      q + of_queries * N, g + of_queries * N, lse + of_queries, delta + of_queries,
      q_stamps, reach, G, T, N, WIDE, ROWS, SCALE, CAP, run != 1,
    )  # fmt: skip
  _store(dk + at, key, dkj * SCALE, S, N, WIDE)
  _store(dv + at, key, dvj, S, N, WIDE)
