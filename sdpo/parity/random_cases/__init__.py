"""Random cases of each family, run through the fork and through the transcription."""
