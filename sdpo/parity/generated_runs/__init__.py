"""A candidate on generated cases: what fails, what was not varied, which faults would show."""
