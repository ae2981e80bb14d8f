"""The recorded families beside the loss: settings, teacher prompts, whole updates."""
