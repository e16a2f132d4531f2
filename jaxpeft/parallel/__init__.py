"""Devices, processes and machines: meshes and shardings, start and stop together."""
