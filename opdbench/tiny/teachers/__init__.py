"""Shipped teachers: finished stages and evaluations of the default recipe."""
