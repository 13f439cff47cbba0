"""Alembic migrations, found by package path, so that they work from an installed wheel.

A new one is a file `versions/rNNNN_words.py` whose `revision` is `NNNN`; `tables.HEAD` then names it. A test
compares the schema that all migrations make with the one in `tables.py`.
"""
