"""Tasks, one file each: what a model is to predict, the loss that it is trained on, and how good it is found to be.

To add one, write `NAME.py` with a frozen dataclass derived from `base.Task`. The file's name is its name in a recipe,
and the fields of the dataclass are its options. `regression.py` is the shortest example.
"""
