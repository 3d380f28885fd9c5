"""Token ids in, token ids out: the model."""
