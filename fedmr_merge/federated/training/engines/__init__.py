"""The engines that train a cohort: `loop` trains each client separately, `vmap` all clients in one pass."""
