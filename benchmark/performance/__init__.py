"""How fast and how lean: the loss, the trainers, the audits, the callback, the executor."""
