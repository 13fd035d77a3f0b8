"""The page of `opdbench report`."""
