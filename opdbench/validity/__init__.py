"""The validity card: evidence that a world can tell methods apart."""
