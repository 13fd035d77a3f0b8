"""Processes, jobs, a Ray cluster, a second thread."""
