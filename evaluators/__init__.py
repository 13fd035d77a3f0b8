"""Evaluators: one file per task; the same object is reward and metric."""
