"""Candidates that are trainers: their real classes run on a tiny model with scripted rollouts."""
