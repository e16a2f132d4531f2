"""Generation: prefill, decoding with a key/value cache, sampling, and `Ask`.

This package may import `transformer`, `data` and the rooms below those; it knows
nothing of adapters, objectives or runs.
"""
