"""The catalogue of known faults."""
