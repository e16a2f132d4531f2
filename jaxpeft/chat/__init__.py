"""A conversation with a model: prompts, adapters by name, and a terminal.

This package may import `export`, `experiment` and the rooms below those. Tokens come
from `generation.stream`.
"""
