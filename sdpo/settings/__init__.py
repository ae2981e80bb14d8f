"""Settings under verl's names, their rules and templates, determinism."""
