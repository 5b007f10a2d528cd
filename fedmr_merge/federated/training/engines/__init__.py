"""How a cohort is trained: `loop` takes one client at a time, `vmap` all at once."""
