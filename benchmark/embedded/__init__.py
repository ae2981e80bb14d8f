"""The embedded benchmark: own problems, own tokenizer, and a tiny model trained from scratch."""
