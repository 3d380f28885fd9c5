"""Lookaround, word borders and anchors anywhere in an expression: the same texts as Python's `re` finds."""

import itertools
import re

import pytest

from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.pattern import has_look
from services.tokenizer.grammar.regex import parse_search, parse_whole
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker

TEXTS = ["".join(chars) for count in range(6) for chars in itertools.product("ab1|", repeat=count)]
SOURCES = [
    "^(?!a)[ab1]+$", "^(?!a$)[ab]+$", "^(?=.*1)(?=.*a)[ab1]{2,4}$", "^(?!.*bb).*$", "^[ab1]+(?<!b)$", "^.*(?<=1a)$",
    "^(?!ab|b)(?!.*1$)\\w+(?<!aa)$", "^(?!(a|b)1)(a|b)", "^(?!a)", "[ab](?<!b)$", "^(?![|])[|ab]+$", "^(?!a\\|)b?a",
    "a(?=b)b", "^(?!a)b|1$", "^((?!ab).)*$", "^(a(?!.*\\|\\|)[a1|]*1)?b", "(?=a)a", "a(?!b)", "(?<!a)b",
    "(?<=a(?<!1a))b",
    "^(?:(?=a*1)[ab]|1(?!1))+$", "(?!(?!a)b)[ab]1", "^(?:(?!a|(?=b1)b)[ab1])+$", "(?=(?=a)[ab]b).*1$",
    "(?=.*1)(?!.*b)a",
    r"\ba", r"a\b", r"\b1\b", r"a\B", r"\Ba", r"^\b.*\b$", r"(?!\b)a", r"^.\b.\B.$", r"(?=.*\b1a\b)b",
    "^(a$)?", "^(b|(a|1)*1$)?$", "a(^b|1)", "(a|^)b", "a($|1)b?", "(^|[|])a(?:[|]|$)", "(?:(^a)|b)*1$", "x*^a",
    "(?!^)a", "a(?!$)",
    "(?<=^a)b", "^(?:a|b$|1(?=$|b))*$",
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_finds_what_python_finds(source: str) -> None:
    dfa = automaton(parse_search(source))
    wide = automaton(parse_search(source, is_wide=True))
    for text in TEXTS:
        expected = re.search(source, text) is not None
        assert dfa.matches(text) == expected, text
        assert wide.matches(text) == expected, text


@pytest.mark.parametrize("source", [one for one in SOURCES if "^" not in one and "$" not in one])
def test_matches_as_a_whole_what_python_does(source: str) -> None:
    dfa = automaton(parse_whole(source))
    for text in TEXTS:
        assert dfa.matches(text) == (re.fullmatch(source, text) is not None), text


@pytest.mark.parametrize(
    "source", ["(?!a)[ab1]+", "(?=.*1)[ab1]{2,4}", "[ab1]+(?<!b)", r"[ab]+\b.\b[ab1]+", "((?!ab).)+1"]
)
def test_answers_match(walker: Walker, source: str) -> None:
    grammar = walker.compile("regex", source)
    ended = [text for text, is_whole in walker.answers(grammar, 20, errors="ignore") if is_whole]
    assert ended
    assert all(re.fullmatch(source, text) for text in ended)


@pytest.mark.parametrize(
    ("source", "text"), [(r"\bé", "é"), (r"é\B", "éa"), (r"a(?!\d)", "a\u0663"), (r"^(?!a$)", "a\n")]
)
def test_where_dialects_differ_the_narrower_reading_is_taken(source: str, text: str) -> None:
    assert not automaton(parse_search(source)).matches(text)


@pytest.mark.parametrize("source", ["a*^b|^a", "^a|b$", "(^a|b$)", "^(?:a|b)$", "(?:^|a)(?:b|$)"])
def test_anchors_at_the_ends_need_no_automaton(source: str) -> None:
    assert has_look(parse_search(source)) == ("*^" in source)


@pytest.mark.parametrize("source", ["(?<=a(?=b))b", r"(?<!a\b)b", "(?<=a$)b"])
def test_looking_ahead_within_a_lookbehind_is_refused(source: str) -> None:
    with pytest.raises(Unenforceable, match="lookbehind"):
        to_ebnf("json_schema", f'{{"pattern": "{source}"}}'.replace("\\", "\\\\"), MAX_CHARACTERS)
