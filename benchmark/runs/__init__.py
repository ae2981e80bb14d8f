"""A benchmark run: settings, trainer, records, resuming."""
