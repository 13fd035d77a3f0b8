"""Weights of the judges, and pictures as their networks' input."""
