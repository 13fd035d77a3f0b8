"""Recorded results that come with the package."""
