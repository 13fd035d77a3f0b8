"""Recipes: TOML files to frozen stages."""
