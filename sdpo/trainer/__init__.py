"""`SDPOTrainer` on TRL: its loss, teachers, schedule and checkpoints."""
