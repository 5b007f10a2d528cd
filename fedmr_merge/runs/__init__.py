"""The run folder: what its files are called, how they are read and written, and which of them are public."""
