"""Recipes: each YAML file is one, and its name is the recipe's name."""
