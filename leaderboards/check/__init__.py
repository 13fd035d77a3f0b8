"""Whether recorded numbers and claims are still reproduced."""
