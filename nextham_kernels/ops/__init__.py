"""The ops: one folder each, with its contract in `__init__.py` and its meaning in `reference.py`."""
