"""Training methods, one file each; see `federated/protocol.py` for what a method is."""
