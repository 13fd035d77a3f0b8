"""The embedded pipeline; see README.md here."""
