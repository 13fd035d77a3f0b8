"""The model: samplers, the one loop over time, the pipeline, adapters."""
