"""Directories below the user's cache: what is computed once and read again.

`disk` bounds their size; `compiled` keeps compiled programs. A cache never fails a run:
what cannot be read or written is computed again.
"""
