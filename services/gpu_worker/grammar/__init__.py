"""Output constraints in the worker: compiled grammars, a matcher a sequence, token masks, forced runs."""
