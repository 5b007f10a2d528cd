"""One file per partition: how the training examples are dealt to the clients."""
