"""Bytes on disk: safetensors headers, checkpoints, and writing so that files appear complete or not at all.

This folder knows nothing of layers or of learning.
"""
