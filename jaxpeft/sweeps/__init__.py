"""Sweeps: many runs, compared at an equal tuning budget per method.

This package may import `experiment` and everything below that, but neither `export`
nor `planning`.
"""
