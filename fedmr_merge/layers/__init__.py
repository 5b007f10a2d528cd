"""Layer rules: which tensors of a model move together, and the recombination plan."""
