"""Recipes: YAML that becomes frozen values, the run that follows a recipe, and sweeps of many runs."""
