"""Training: the optimizer step, the loop around it, and the files a run writes.

This package may import `objectives`, `adapters`, `generation` and the rooms below
those; it knows nothing of checkpoints, evaluation or how a run is assembled.
"""
