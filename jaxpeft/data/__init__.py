"""Data: sources, tokenizer and templates, masks, packing, batches by (seed, step)."""
