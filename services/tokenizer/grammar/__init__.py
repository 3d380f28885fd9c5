"""What answers must match: constraints to compiled grammars, in processes that can be killed."""
