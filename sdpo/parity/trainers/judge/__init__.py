"""A recorded training against the reference, stage by stage."""
