"""One actor update and the teacher that follows it, in plain torch."""
