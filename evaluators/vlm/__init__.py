"""Judges that are large models behind a server."""
