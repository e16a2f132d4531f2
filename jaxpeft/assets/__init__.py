"""The embedded toy model, its tokenizer, and their recipe (see tiny/README.md)."""

import pathlib

TINY = pathlib.Path(__file__).parent / "tiny"
