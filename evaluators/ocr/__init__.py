"""OCR accuracy by a real engine."""
