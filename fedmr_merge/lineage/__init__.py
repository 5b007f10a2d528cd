"""Where every tensor came from."""
