"""Training methods, one file each.

To add one, write `NAME.py` with a frozen dataclass derived from `base.Algorithm`. The file's name is its name in a
recipe, and the fields of the dataclass are its options. Override `start` and `aggregate`, and `select`, `dispatch` or
`objective` where the method differs from federated averaging. `fedavg.py` and `fedprox.py` are the shortest examples;
`protocol.py` describes the values that are passed. Nothing is registered: tests/federated/algorithms finds the file.
"""
