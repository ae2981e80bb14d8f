"""What a loss can be asked: its knobs, declared or found by trying."""
