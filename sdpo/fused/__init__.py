"""The same loss from hidden states, without the logits."""
