"""SDPO: a readable implementation with a reference-parity harness."""

__version__ = "0.1.0"
