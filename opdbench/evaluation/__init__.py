"""The one evaluation path: generate pictures, score them, keep rows."""
