"""From a completion to pass@1."""
