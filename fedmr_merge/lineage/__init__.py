"""The lineage of an output: which tensor of which input each of its tensors came from."""
