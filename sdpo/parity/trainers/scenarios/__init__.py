"""The scripted world of a training, and what was recorded in it."""
