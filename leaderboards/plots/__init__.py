"""Figures that stand alone."""
