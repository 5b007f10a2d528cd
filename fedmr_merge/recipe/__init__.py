"""Recipes: YAML to frozen values, and the run that follows one."""
