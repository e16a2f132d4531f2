"""The decoder: its configuration, layers, attention, and the functions that run them.

This package may import `quantization`, `data`, `console`, `parallel` and the rooms
below those; it knows nothing of adapters, losses or runs.
"""
