"""Grammars for answers, written in Python.

    from sapwood import grammar as g

    template = g.Grammar("Capital: " + g.gen("capital", regex="[A-Z][a-z]+") + ", founded in " + g.gen("year", int))
    answer = client.completions.create(..., extra_body=template.extra_body())
    template.parse(answer.choices[0].text)["year"]

Parts are strings, `regex`, `json` (of a Python type), `any_text`, put together with `+`, `|`, `repeat` and `optional`;
`rule` names one that may contain itself, `gen` and `select` name what is to be read from the answer.
"""

from sapwood.grammar.errors import AnswerError, GrammarError
from sapwood.grammar.grammar import Grammar
from sapwood.grammar.parts import (
    Part,
    any_text,
    choice,
    gen,
    json,
    optional,
    ref,
    regex,
    repeat,
    rule,
    select,
    seq,
    text,
)
from sapwood.grammar.python_types import read, schema_of
from sapwood.grammar.reading import Match

__all__ = [
    "AnswerError",
    "Grammar",
    "GrammarError",
    "Match",
    "Part",
    "any_text",
    "choice",
    "gen",
    "json",
    "optional",
    "read",
    "ref",
    "regex",
    "repeat",
    "rule",
    "schema_of",
    "select",
    "seq",
    "text",
]
