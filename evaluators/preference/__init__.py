"""Preference scores by models that were trained on people's choices."""
