"""Checkouts of verl beside the recorded one: names, defaults, and what their functions give."""
