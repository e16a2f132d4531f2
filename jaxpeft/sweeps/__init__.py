"""Sweeps: many runs of train.py, compared at an equal tuning budget per method.

This package may import `experiment` and everything below it, but neither `export` nor
`planning`.
"""
