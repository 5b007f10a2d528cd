"""The Hub, both ways: asking it, listing it, reading models from it."""
