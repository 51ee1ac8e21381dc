"""Rows to learn from: where they are read, how they become tokens, and in what order batches take them.

`sources` reads rows (`files`, `streams`, `builtin` and the Hub feed it, `labels` says what a class is), `rendering`
and `tokenizing` turn them into tokens, `ordering` and `collating` into batches. `columns` answers `validate` without
loading anything heavy.
"""
