"""Recipes, training a recipe in a run directory, and hyperparameter sweeps."""
