"""Trainers: the scripted world, the hooks, and the judgement of a recorded training."""
