"""Models and adapters written for others, and read back to compare."""
