"""The second edition of the embedded model."""
