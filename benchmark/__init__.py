"""MBPP code generation: data, confined scoring, reward, statistics."""
