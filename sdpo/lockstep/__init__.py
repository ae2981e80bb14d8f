"""A running training, repeated update by update by the reference."""
