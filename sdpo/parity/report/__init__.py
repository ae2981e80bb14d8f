"""The report document: policy, declared deviations, validation, history."""
