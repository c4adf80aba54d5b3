"""Thought Preference Optimization (arXiv 2410.10630) for one consumer GPU."""

__version__ = "0.1.0"
