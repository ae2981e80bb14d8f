"""Confined execution of untrusted Python: a fork server per worker, plain data over a socket."""
