"""Training data: from rows of text to tokens, loss masks and packed batches.

This package may import `parallel`, `tree`, `config`, `errors`, `linear`
and `assets`; it knows nothing of models or training.
"""
