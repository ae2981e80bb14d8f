"""What a candidate may look like: one file per kind."""
