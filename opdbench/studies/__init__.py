"""Studies: grids of runs over methods, the values of one axis, and seeds."""
