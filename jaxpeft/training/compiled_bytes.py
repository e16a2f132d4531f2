"""Device memory of a compiled program: as planned by the compiler, and as used."""


def planned(compiled) -> int:
  """Bytes that a compiled program needs, its arguments included."""
  plan = compiled.memory_analysis()
  # A donated argument stays in place: it counts once.
  return (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )


def temporary(compiled) -> int:
  """Bytes of a compiled program's temporaries."""
  return compiled.memory_analysis().temp_size_in_bytes


def live_peak(device) -> int | None:
  """The most bytes in use so far, where the backend reports them."""
  return (device.memory_stats() or {}).get("peak_bytes_in_use")
