"""What users of a Sapwood server import. Needs none of the services and, beside the standard library, msgspec alone."""
