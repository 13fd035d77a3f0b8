"""What a loss sees, and the subject of the benchmark: OPD and its gradient estimators."""
