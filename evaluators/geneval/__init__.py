"""GenEval: the official rules over a detector that can be exchanged."""
