"""The oracle, and how far a correct evaluation may be from it."""
