"""Model architectures, one file each.

To add one, write `NAME.py` with a frozen dataclass derived from `base.Architecture`. The file's name is its name in a
recipe, and the fields of the dataclass are its options. Its method `build` returns a module derived from
`base.Classifier`, which has two parts: `features(images)` and, on top of these, `head(features)`. `cnn.py` is the
shortest example. Nothing is registered: tests/federated/models finds the file.
"""
