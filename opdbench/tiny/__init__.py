"""The embedded tiny world: scenes, prompts, renderer, pretraining recipe, weights."""
