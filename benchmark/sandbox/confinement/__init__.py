"""The kernel's means of confinement, one a file."""
