"""Bytes on disk: safetensors headers, checkpoints, atomic writing. Knows nothing of layers or learning."""
