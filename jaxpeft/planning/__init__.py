"""Planning: the memory and communication of a training step, without its devices.

It compiles the real step ahead of time, and may import `experiment` and everything
below that.
"""
