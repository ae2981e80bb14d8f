"""Confined execution of untrusted Python: a fork server per worker and plain data over a socket.

`kernel`, `landlock`, `seccomp`, `namespaces` are thin bindings, one mechanism each; `confine` puts
them together; `server` forks; `runner` runs a submission; `judge` evaluates a test's own code;
`values` and `wire` are the protocol; `client` and `peer` are the only modules that run in the
harness's process alone. All but these import the standard library only and run under `python -S`.
"""
