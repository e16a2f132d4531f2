"""Strategies: how a model spends tokens at test time to answer better."""
