"""Finished runs as numbers: groups, comparisons, paired tests, cost."""
