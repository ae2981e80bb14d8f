"""Parity pipeline: stages, oracle, budgets, comparison, verdicts and reports."""
