"""Memory: what the compiler plans for a program, and what was measured."""

import contextlib
import ctypes
import resource
import sys


def planned(compiled) -> int:
  """Bytes that a compiled program needs, including its arguments and results."""
  plan = compiled.memory_analysis()
  # A donated argument shares memory with a result, so it counts once.
  return (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )


def temporary(compiled) -> int:
  """Bytes of a compiled program's temporaries."""
  return compiled.memory_analysis().temp_size_in_bytes


def return_freed():
  """Returns memory that this process has freed to the system; only glibc can.

  XLA's compiler frees some 200 MB for a model of 30 layers, which glibc would keep for
  the whole run: a sixth of the memory of a process that trains 135 M weights on a CPU.
  """
  with contextlib.suppress(OSError, AttributeError):  # other C libraries
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def live_peak(device) -> int | None:
  """The most bytes in use so far, or None if the backend does not report them."""
  return (device.memory_stats() or {}).get("peak_bytes_in_use")


def process_peak() -> int:
  """The most bytes of memory that this process had so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak
