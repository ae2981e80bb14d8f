"""How commands write files and tables, and show progress."""
