"""Lookaround at the ends of an expression: the same texts as Python's `re` finds."""

import itertools
import re

import pytest

from services.tokenizer.grammar import lookaround
from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.errors import Unenforceable
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker

TEXTS = ["".join(chars) for count in range(6) for chars in itertools.product("ab1|", repeat=count)]


@pytest.mark.parametrize(
    "source",
    [
        "^(?!a)[ab1]+$", "^(?!a$)[ab]+$", "^(?=.*1)(?=.*a)[ab1]{2,4}$", "^(?!.*bb).*$", "^[ab1]+(?<!b)$", "^.*(?<=1a)$",
        "^(?!ab|b)(?!.*1$)\\w+(?<!aa)$", "^(?!(a|b)1)(a|b)", "^(?!a)", "[ab](?<!b)$", "^(?![|])[|ab]+$", "^(?!a\\))b",
    ],
)  # fmt: skip
def test_finds_what_python_finds(source: str) -> None:
    dfa = lookaround.searched(source)
    assert not lookaround.split(source).is_plain
    for text in TEXTS:
        assert dfa.matches(text) == (re.search(source, text) is not None), text


@pytest.mark.parametrize("source", ["(?!a)[ab1]+", "(?=.*1)[ab1]{2,4}", "[ab1]+(?<!b)", "^(?!b)[ab1]*(?<=1a)$"])
def test_matches_as_a_whole_what_python_does(walker: Walker, source: str) -> None:
    dfa = lookaround.whole(source)
    for text in TEXTS:
        assert dfa.matches(text) == (re.fullmatch(source, text) is not None), text
    grammar = walker.compile("regex", source)
    ended = [text for text, is_whole in walker.answers(grammar, 20, errors="ignore") if is_whole]
    assert ended
    assert all(re.fullmatch(source, text) for text in ended)


@pytest.mark.parametrize("source", ["a(?=b)b", "^(?!a)b|c$", "^((?!a)b)$", "a\\$(?<!b)c", "^a(?!b)", "(?=a)a"])
def test_is_refused_elsewhere(source: str) -> None:
    with pytest.raises(Unenforceable, match=r"look(ahead|behind)"):
        to_ebnf("json_schema", f'{{"pattern": "{source}"}}'.replace("\\", "\\\\"), MAX_CHARACTERS)
