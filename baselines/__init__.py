"""Baselines: losses and recipes of the rivals of DiffusionOPD."""
