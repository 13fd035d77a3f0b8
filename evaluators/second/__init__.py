"""Judges of the second edition of the embedded world."""
