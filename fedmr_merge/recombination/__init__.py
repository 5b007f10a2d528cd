"""The engine: layer rules, plans, recombination, averaging, lineage. Knows nothing of federated learning."""
