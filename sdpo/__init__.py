"""SDPO: a readable implementation with a reference-parity harness."""

from sdpo.settings.version import __version__

__all__ = ["__version__"]
