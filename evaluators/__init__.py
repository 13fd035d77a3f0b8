"""Evaluators score pictures; the same object is the reward of training and the metric of a table."""
