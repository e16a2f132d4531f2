"""Files: Hugging Face models, adapters in two formats, and the state of a run.

This package may import `training` and everything below it; it knows nothing of loaded
models, evaluation or experiments.
"""
