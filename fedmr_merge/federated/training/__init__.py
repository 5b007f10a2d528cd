"""Local training: what a client does with the model of its slot, and the engines that do it."""
