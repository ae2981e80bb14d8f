"""From attempts and feedback to the teacher's tokens."""
