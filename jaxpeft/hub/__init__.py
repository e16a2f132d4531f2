"""Sharing: adapters and models of runs, pushed to and pulled from the Hugging Face hub.

This package may import `export`, `experiment` and the rooms below those. All talk with
the hub is huggingface_hub's, in `client`.
"""
