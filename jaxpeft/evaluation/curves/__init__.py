"""Curves: what a strategy gains for its tokens, from chains that were run once."""
