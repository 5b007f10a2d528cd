"""The trainer: produces the checkpoints that are recombined."""
