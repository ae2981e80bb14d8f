"""Records cases from a checkout of the fork, and records the packaged ones again."""
