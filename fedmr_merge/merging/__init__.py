"""Compute one model from the values of K models: the mean, tensor by tensor, and the exact mean of LoRA adapters."""
