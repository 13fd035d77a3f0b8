"""The verbs of the command line, a file per verb; heavy imports stay inside the functions."""
