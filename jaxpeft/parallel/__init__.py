"""Many devices and processes as one program: meshes, shardings, starting and stopping.

This package may import `tree`, `linear`, `config` and `errors`; it knows nothing of
models or training.
"""
