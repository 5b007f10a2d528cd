"""The same rounds over client machines, with Flower; see `docs/flower.md`."""
