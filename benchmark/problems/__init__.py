"""Data sets, prompts, and what a problem is."""
