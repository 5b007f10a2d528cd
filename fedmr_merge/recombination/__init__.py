"""Recombine checkpoints by copying bytes, verify the output, and undo it. Knows nothing of federated learning."""
