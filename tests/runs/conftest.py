"""Trainers of small stages, for every test here."""

from small_training import small, trainer

__all__ = ["small", "trainer"]
