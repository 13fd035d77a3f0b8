"""opdbench: a benchmark for giving one text-to-image diffusion model several skills at once."""

__version__ = "0.1.0"
