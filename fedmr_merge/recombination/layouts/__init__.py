"""How the output of a recombination is laid out on a disk."""
