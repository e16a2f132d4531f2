"""Files in the package: a toy model with its tokenizer, described in tiny/README.md.

This package imports nothing of jaxpeft.
"""

import pathlib

TINY = pathlib.Path(__file__).parent / "tiny"
