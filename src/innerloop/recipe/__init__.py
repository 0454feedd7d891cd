"""Recipes, training by one in a run directory, and searching for better values."""
