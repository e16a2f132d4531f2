"""Evaluation: the held-out loss, generated answers, and their accuracy.

This package may import `model`, `training`, `generation` and the rooms below those; it
does not know how a run is assembled (`experiment`).
"""
