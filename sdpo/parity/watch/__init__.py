"""Audits of releases, each in an environment of its own: which of them moved a deviation."""
