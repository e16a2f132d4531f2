"""A model as lm-evaluation-harness asks it.

Only `lm` imports the harness, which is installed by the extra [eval].
"""
