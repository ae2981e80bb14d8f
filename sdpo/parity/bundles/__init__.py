"""Failing cases shrunk, packed and replayed."""
