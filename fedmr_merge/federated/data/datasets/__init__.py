"""Data sets, one file each.

To add one, write `NAME.py` with a frozen dataclass derived from `base.DataSet`. The file's name is its name in a
recipe, and the fields of the dataclass are its options. `digits.py` is the shortest example.
"""
