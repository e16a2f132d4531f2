"""4-bit weights (NF4) and products with them, in plain JAX or with `jaxpeft_kernels`.

This package may import `parallel` and the rooms below it.
"""
