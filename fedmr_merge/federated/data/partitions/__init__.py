"""Partitions, which divide the training examples among the clients, one file each.

To add one, write `NAME.py` with a frozen dataclass derived from `base.PartitionMethod`. The file's name is its name in
a recipe, and the fields of the dataclass are its options. `iid.py` is the shortest example.
"""
