"""Expressions mean to a client what they mean to a server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.grammar.dialect import compiled
from sapwood.grammar.errors import GrammarError
from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.regex import parse_whole

PATTERNS = [
    "a.b", r"\d+", r"\D", r"\w\s\S", r"[\w.-]+", r"[^\w.]", r"[^\s\d]", r"[\D]", r"[^\D]", "^a$", r"\Aa\Z", "(?<n>a)b",
    "(?P<n>a|b)", r"\x41\u0042\u{43}", r"[\x41-\x43]", r"\ud83d\ude00", r"\p{Lu}\P{L}", r"[\p{Ll}_]", r"[&&--||~~]",
    r"[a\-z]", r"[\]\[]", "a{2}b{,2}c{1,}", r"\t\n\cJ\0", r"[\b]", r"a|b|", "(?:ab){2,3}?", r"\.\*\\", "[+*?(){}|^$]",
]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    drawn=st.lists(st.text(alphabet="abcAB01 _-.\n\r\t\u2028é😀٣&|~[]^$*\b\0{n}", max_size=5), min_size=40, max_size=40)
)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_a_server_reads_them(pattern: str, drawn: list[str]) -> None:
    dfa = automaton(parse_whole(pattern))
    for text in drawn:
        assert (compiled(pattern).fullmatch(text) is not None) == dfa.matches(text), text


@pytest.mark.parametrize("pattern", ["(", "a)", "[a", "[b-a]", "*", "a{3,2}", r"\p{Xx}", r"\p", "\\", r"\u12"])
def test_neither_takes_them(pattern: str) -> None:
    with pytest.raises(GrammarError):
        compiled(pattern)
    with pytest.raises(Unenforceable):
        parse_whole(pattern)
