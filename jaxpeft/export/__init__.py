"""Export: models and adapters written for other libraries, then read back and compared.

This package may import `experiment` and everything below that, but neither `planning`
nor `sweeps`.
"""
