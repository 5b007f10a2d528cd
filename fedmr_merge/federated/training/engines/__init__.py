"""The engines that train a cohort: `loop` trains each client by itself, `vmap` all clients at once."""
