"""Transcription of the verl SDPO path, written from its specification; torch only."""
