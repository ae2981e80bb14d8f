"""Metamorphic relations of a loss."""
