"""Tables of text, before any format, and the formats."""
