"""Values: K models become one."""
