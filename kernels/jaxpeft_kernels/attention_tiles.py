"""Tile sizes of the attention kernels, by architecture and head_dim.

Of the tiles that were tried, these have the fewest compiled instructions per score in
the inner loops. They spill no registers there, and fit into the shared memory of a
program. None has been timed.

A soft cap needs more registers, so there are separate tiles for it.
"""

from typing import NamedTuple

SHARED = {90: 227}  # KiB that a program may have
HEAD_DIM = 256  # the largest


class Tile(NamedTuple):
  """How scores are divided into programs."""

  rows: int  # queries
  keys: int
  warps: int  # per program
  stages: int  # of the load pipeline


# Architecture -> kernel -> largest head_dim -> (tile, tile with a soft cap).
TILES = {
  90: {
    "forward": {
      64: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3)),
      128: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3)),
      256: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
    },
    "backward_q": {
      64: (Tile(128, 64, 8, 3), Tile(128, 64, 8, 3)),
      128: (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
      256: (Tile(128, 32, 8, 1), Tile(64, 32, 8, 2)),
    },
    "backward_kv": {
      64: (Tile(64, 128, 8, 2), Tile(64, 64, 4, 2)),
      128: (Tile(64, 128, 8, 2), Tile(64, 64, 8, 2)),
      256: (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
    },
  },
}


def tile_for(kernel: str, head_dim: int, capped: bool, capability: int) -> Tile:
  """The tile of a kernel on a GPU of some compute capability, such as 90 for 9.0."""
  by_size = TILES[architecture(capability)][kernel]
  return next(x for most, x in by_size.items() if head_dim <= most)[capped]


def architecture(capability: int) -> int | None:
  """The key of `TILES` for a compute capability; None where no tile is known to fit."""
  return capability if capability in TILES else None
