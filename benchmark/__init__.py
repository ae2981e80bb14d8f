"""MBPP code generation: problems, confined scoring, runs and their results."""
