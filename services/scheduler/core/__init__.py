"""The scheduler's decisions: a deterministic state machine without I/O, clock or randomness."""
