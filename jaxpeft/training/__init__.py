"""The optimizer step, its loop, and what a run leaves to read."""
