"""Hooks that record what a trainer derived from transformers' `Trainer` does."""
