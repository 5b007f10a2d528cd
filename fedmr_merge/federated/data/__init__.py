"""Data sets, and how their training examples are divided among the clients."""
