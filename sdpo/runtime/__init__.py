"""How commands write files and show progress."""
