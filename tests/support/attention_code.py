"""The attention kernels compiled for a GPU that need not be there: spills, memory.

  python tests/support/attention_code.py CAPABILITY [KERNEL [HEAD_DIM]]

Needs triton, whose wheel has the assembler. Run by tests/kernels.
"""

import concurrent.futures
import itertools
import pathlib
import re
import subprocess
import sys
import tempfile

import triton
from jaxpeft_kernels import attention_tiles, attention_triton

from tests.support.kernel_code import compiled

HEAD_DIMS = (64, 80, 96, 128, 256)
_HEADS, _TOKENS = 32, 2048
_POINTERS = {name: "*i32" for name in ("q_stamps", "k_stamps", "bounds", "window")}
_POINTERS |= dict(lse="*fp32", delta="*fp32")


def code(name: str, tile, n: int, cap: float, groups: int, capability: int):
  """A compiled kernel, for bfloat16.

  Args:
    name: of the kernel.
    tile: an `attention_tiles.Tile`.
    n: head_dim.
    cap: soft cap, or 0.
    groups: query heads of each key/value head.
    capability: such as 90 for 9.0.
  """
  kernel = getattr(attention_triton, name)
  constants = dict(
    H=_HEADS, G=groups, T=_TOKENS, S=_TOKENS, N=n, WIDE=1 << (n - 1).bit_length(),
    ROWS=tile.rows, KEYS=tile.keys, SCALE=n**-0.5, CAP=cap,
  )  # fmt: skip
  arrays = [x for x in kernel.arg_names if x not in constants]
  types = {x: _POINTERS.get(x, "*bf16") for x in arrays}
  return compiled(kernel, types, constants, tile.warps, tile.stages, capability)


def measure(kernel):
  """(registers, bytes of stack, whether it uses HGMMA, [(instructions, spills)]).

  The list has the inner loops, which multiply matrices; spills are loads and stores of
  the stack.
  """
  tools = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
  with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(kernel.asm["cubin"])
    file.flush()
    usage, sass = (
      subprocess.run(
        [tools / "cuobjdump", what, file.name],
        capture_output=True,
        text=True,
        check=True,
      ).stdout
      for what in ("-res-usage", "-sass")
    )
  registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
  lines = [
    (int(a, 16), x) for a, x in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
  ]
  loops = []
  for at, text in lines:
    jump = re.search(r"BRA\S* .*?(0x[0-9a-f]+)", text)
    if jump and int(jump[1], 16) < at:
      loops.append((int(jump[1], 16), at))
  # Of nested loops the inner one; the outer one, over heads, runs seldom.
  inner = [
    (a, b)
    for a, b in loops
    if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)
  ]
  bodies = [[x for at, x in lines if a <= at <= b] for a, b in inner]
  bodies = [body for body in bodies if any("MMA" in x for x in body)]
  spills = [sum("LDL" in x or "STL" in x for x in body) for body in bodies]
  counts = list(zip(map(len, bodies), spills, strict=True))
  return registers, stack, "HGMMA" in sass, counts


def check(name: str, n: int, cap: float, groups: int, capability: int) -> str:
  """A line about the chosen tile; raises where it spills in a loop, or does not fit."""
  tile = attention_tiles.tile_for(name, n, bool(cap), capability)
  kernel = code(name, tile, n, cap, groups, capability)
  registers, stack, hopper, loops = measure(kernel)
  shared = kernel.metadata.shared
  limit = attention_tiles.SHARED[attention_tiles.architecture(capability)] * 2**10
  line = (
    f"sm_{capability} {name:<11} head_dim {n:>3} cap {cap:>2.0f} groups {groups}: "
    f"{tile.rows}x{tile.keys}, {tile.warps} warps, {tile.stages} stages, "
    f"{registers} registers, {stack} bytes of stack, {shared / 1024:.0f} KiB, "
    f"{'HGMMA' if hopper else 'HMMA'}, loops {loops}"
  )
  assert len(loops) == 3, line
  assert not any(spills for _, spills in loops), line
  assert shared <= limit, line
  # Hopper's own product of matrices; two gradients of 256 columns leave no room for it.
  small = name == "backward_kv" and n > 128
  assert hopper == (capability == 90 and not small), line
  return line


def main(capability: str, name: str = "", n: str = ""):
  """All kernels, or the named one; all head_dims, or one; what fails raises."""
  cases = [
    (kernel, size, cap, groups, int(capability))
    for kernel, size, (cap, groups) in itertools.product(
      attention_tiles.TILES[90], HEAD_DIMS, ((0.0, 1), (0.0, 4), (50.0, 2))
    )
    if name in ("", kernel)
    and n in ("", str(size))
    and (groups != 4 or kernel == "backward_kv")  # no other kernel has a loop over them
  ]
  with concurrent.futures.ProcessPoolExecutor(2) as pool:
    for line in pool.map(check, *zip(*cases, strict=True)):
      print(line, flush=True)
  print(f"{len(cases)} kernels fit")


if __name__ == "__main__":
  main(*sys.argv[1:])
