"""The trained preference model, a CLIPModel folder."""
