"""4-bit weights (NF4) and products with them.

May import `parallel` and what stands below it. The kernels are in `jaxpeft_kernels`.
"""
