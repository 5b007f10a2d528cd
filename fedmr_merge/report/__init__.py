"""What people look at: learning curves and partition plots."""
