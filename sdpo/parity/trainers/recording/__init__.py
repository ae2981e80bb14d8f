"""Hooks that record what a trainer does, and what a user's adapter derives from."""
