"""Puts this folder on the import path: the tests below it share `small_federation.py`."""
