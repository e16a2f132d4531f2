"""The NF4 kernels compiled for an H100: registers, memory, instructions.

Needs triton, whose wheel has the assembler, and no GPU. Run by test_kernels.
"""

import pathlib
import re
import subprocess
import tempfile

import triton
from jaxpeft_kernels import nf4, nf4_triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_OUTPUTS, _INPUTS = 4096, 4096
_POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
_SHARED = 227 * 2**10  # bytes that a program of an H100 may have


def compiled(
  kernel, types: dict, constants: dict, warps: int, stages: int, capability: int = 90
):
  """A kernel for a GPU of some compute capability, such as 90 for 9.0.

  Args:
    kernel: a `triton.jit` function.
    types: Triton's names of its arguments' types.
    constants: its `tl.constexpr` arguments.
    warps: of a program.
    stages: of its pipeline.
    capability: what to compile for.
  """
  names = kernel.arg_names
  source = ASTSource(
    kernel,
    signature={n: types.get(n, "constexpr") for n in names},
    constexprs={(names.index(n),): x for n, x in constants.items()},
    # As JAX's arrays are.
    attrs={
      (names.index(n),): [["tt.divisibility", 16]]
      for n, kind in types.items()
      if kind[0] == "*"
    },
  )
  options = dict(num_warps=warps, num_stages=stages)
  return triton.compile(
    source, target=GPUTarget("cuda", capability, 32), options=options
  )


def stack_bytes(kernel) -> int:
  """Of a thread: registers that were spilled, and arrays."""
  tools = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
  with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(kernel.asm["cubin"])
    file.flush()
    command = [tools / "cuobjdump", "-res-usage", file.name]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
  return int(re.search(r"STACK:(\d+)", out.stdout + out.stderr)[1])


def fits(kernel, what):
  """Asserts that nothing is spilled and shared memory suffices."""
  assert stack_bytes(kernel) == 0, what
  assert kernel.metadata.shared <= _SHARED, what
  print(*what, f"{kernel.metadata.shared} bytes shared", flush=True)


def main():
  """Every kernel, type and tile; what fails raises."""
  weight = dict(codes="*u8", scales="*fp32", table="*fp32")
  for dtype, pointer in _POINTERS.items():
    constants = dict(N=_OUTPUTS, K=_INPUTS, ROWS=16)
    types = weight | dict(out=pointer)
    fits(compiled(nf4_triton.dequantize, types, constants, 4, 1), (dtype,))
    for tile in nf4.TILES[dtype == "float32"]:
      tile = nf4.tile_for(tile.rows, _OUTPUTS, _INPUTS, dtype)
      result = pointer if tile.splits == 1 else "*fp32"
      types = weight | dict(x=pointer, M="i32", out=result)
      constants = dict(
        N=_OUTPUTS, K=_INPUTS, ROWS=tile.rows, OUTPUTS=tile.outputs, SPLITS=tile.splits
      )
      kernel = compiled(nf4_triton.matmul, types, constants, tile.warps, tile.stages)
      fits(kernel, (dtype, tile))
      # Hopper's own product of matrices, where there are the 64 rows that it takes.
      assert ("wgmma" in kernel.asm["ptx"]) == (tile.rows >= 64), (dtype, tile)
  print("the kernels' code is right")


if __name__ == "__main__":
  main()
