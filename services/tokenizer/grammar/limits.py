"""How much a constraint may ask for. What is over a limit is refused before it is compiled."""

MAX_DEPTH = 100
"""Nesting of a schema or tag as JSON, and of groups in expressions."""

MAX_VALUES = 20_000
"""JSON values in a schema or tag: members of enums, keywords, everything."""

MAX_CHOICES = 20_000

MAX_REPEAT = 10_000
"""Largest count in a regex or grammar, as in `x{0,10000}`."""

MAX_STATES = 4_000
"""States of an automaton of a pattern."""

MAX_RULES = 20_000
"""Of a constraint turned into a grammar."""

MAX_GRAMMAR_CHARACTERS = 4 * 2**20
"""Of a constraint turned into rules."""
