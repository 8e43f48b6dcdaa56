"""Measures the operations of this project against what others offer: `python -m bench <op>`."""
