"""Regexes: matches drawn at random match in Python too; what is not supported is named."""

# ruff: noqa: E501 - tables

import json
import re

import jsonschema
import pytest

from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.dfa import intersected, shortest, subtracted, values
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.pattern import ANYTHING, has_clear_ends, lengths, seq, shrunk
from services.tokenizer.grammar.regex import parse_search, parse_whole
from tests.services.tokenizer.grammar.random_walk import Walker

PIECES = [
    "[a-z]{3,5}", r"\d{3}-\d{4}", "(foo|ba[rz])+x?", "(a|a)*b", "(a*)*b", "(x+x+)+y", "[^a-z]{2}é", r"\w+@\w+\.(com|org)",
    r"[^\W\d]{4}", ".{0,50}!", "a{20}", r"(\+|-)?[0-9]+(\.[0-9]*)?", r"([a-z]{1,20}\.){2,3}[a-z]{2,20}", "(?:a|b|ab){5}c",
    r"(?P<year>20\d\d)-(?P<month>0[1-9]|1[0-2])", r"\S+", r"[\w.-]+", r"\x41é", r"[\]\\^-]", "a*?b+?", "", "()|x",
    r"\[\d+(, \d+){0,3}\]", r"#[0-9a-fA-F]{6}", r"(https?)://[^\s/]+(/[^\s]*)?", r"[^\n]*", r"\{\"k\": \d\}", "(ab|a)(bc|c)",
]  # fmt: skip
REGEXES = [*PIECES, *(f"^{one}(?:{other})?$" for one, other in zip(PIECES, PIECES[5:], strict=False))]
REGEXES += [f"(?:{one})|{other}" for one, other in zip(PIECES, PIECES[9:], strict=False)]


@pytest.mark.parametrize("source", REGEXES)
def test_matches(walker: Walker, source: str) -> None:
    grammar = walker.compile("regex", source)
    found = [text for text, is_whole in walker.answers(grammar, 8, max_tokens=300) if is_whole]
    for text in found:
        assert re.fullmatch(source, text), text
        assert automaton(parse_whole(source)).matches(text)


@pytest.mark.parametrize("source", [piece for piece in PIECES if piece not in (".{0,50}!",)])
@pytest.mark.parametrize("anchors", ["{}", "^{}", "^(?:{})$"])
def test_patterns_in_json_strings(walker: Walker, source: str, anchors: str) -> None:
    source = anchors.format(source)
    grammar = walker.compile("json_schema", json.dumps({"type": "string", "pattern": source, "maxLength": 90}))
    for text, is_whole in walker.answers(grammar, 3, max_tokens=300):
        if is_whole:
            assert re.search(source, json.loads(text))
            assert len(json.loads(text)) <= 90


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("(", "unmatched '('"), (")", "unmatched ')'"), ("*", "nothing to repeat"), ("a{3,1}", "wrong order"),
        ("a{100000}", "repeat of more"), ("[z-a]", "wrong order"), ("[]", "empty class"), ("(?=a)", "no text"),
        ("x(?!y)y", "no text"), ("^*", "repeats an anchor"), (r"(a)\1", "back-reference"), ("(?P=x)", "back-reference"),
        ("(?i)a", "flags"), ("(?>a)", "atomic"), ("a++", "possessive"), (r"\q", "unknown escape"),
        ("[[:alpha:]]", "POSIX"), ("a^b", "no text"), (r"\p{Greek}", "Unicode property"), ("[a", "ends too early"),
        ("\\", "ends too early"), (r"\ud800", "surrogate"), ("(" * 200 + ")" * 200, "nested"), (r"[^\s\S]", "matches no text"),
        (r"\u{110000}", "no character"), ("a**", "repeats a repeat"), (r"\xZ", "digits"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(walker: Walker, source: str, words: str) -> None:
    with pytest.raises(Unenforceable, match=re.escape(words)):
        walker.compile("regex", source)


@pytest.mark.parametrize(
    "source", [r"\0", r"\01", r"\018", r"\0123", r"a\08", r"[\000-\037]", r"[^\000-\037]", r"[\0-\02]"]
)
def test_octal_escapes_are_read_as_python_reads_them(source: str) -> None:
    found = automaton(parse_whole(source))
    texts = [one + rest for one in map(chr, range(128)) for rest in ("", "1", "8", "\n3", "\0" + "8")]
    for text in [*texts, "a\0" + "8", "\0" + "01"]:
        assert found.matches(text) == (re.fullmatch(source, text) is not None), text


def test_automata() -> None:
    vowels, short = automaton(parse_whole("[aeiou]+")), automaton(parse_whole("[a-z]{1,2}"))
    both = intersected(vowels, short)
    assert values(both, 100) == sorted([*"aeiou", *(a + b for a in "aeiou" for b in "aeiou")])
    assert values(both, 10) is None
    assert values(vowels, 100) is None
    assert shortest(subtracted(vowels, short)) == 3
    assert subtracted(both, vowels).is_empty


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("^[a-z]+$", 5),
        ("x", 9),
        ("^(?:@[a-z]+/)?[a-z]*$", 20),
        (r"^[a-z](?:[-a-z]*[a-z])?$", 63),
        (r"^(\w+\.)+\w+$", 30),
    ],
)
def test_a_shrunk_pattern_fits_and_is_part_of_the_whole(source: str, room: int) -> None:
    whole = parse_search(source)
    part = shrunk(whole, room)
    assert lengths(part)[1] is not None
    assert (lengths(part)[1] or 0) <= room
    inside = automaton(part)
    assert not inside.is_empty
    assert subtracted(inside, automaton(whole)).is_empty


@pytest.mark.parametrize(
    "source", [r".*\S.*", "a*b+c*", "[a-z]+", "(ab)*x{2,5}", "x?|y+", "(?:a|b)?", "", "(a*b?)+", "a{3,}b{0,2}c*"]
)
def test_what_a_search_leaves_out_at_its_ends_changes_nothing(source: str) -> None:
    searched, whole = automaton(parse_search(source)), automaton(seq([ANYTHING, parse_whole(source), ANYTHING]))
    assert subtracted(searched, whole).is_empty
    assert subtracted(whole, searched).is_empty


@pytest.mark.parametrize(
    ("source", "is_clear"),
    [
        ("[a-z]*", True),
        ("[a-z]+-[0-9]+", True),
        ("[a-z]+[a-z0-9]*", False),
        (r".*\S", False),
        ("a{3}a*", True),
        ("a*b?a", False),
        ("(a*b)*c", True),
        ("(x|[a-z]*q)", False),
        ("x(ab)*(ac)?", False),
    ],
)
def test_the_next_character_tells_whether_a_repeat_is_over(source: str, is_clear: bool) -> None:
    assert has_clear_ends(parse_whole(source)) == is_clear


def test_jsonschema_agrees_on_unanchored_patterns(walker: Walker) -> None:
    schema = {"type": "string", "pattern": "b|^a|c$", "maxLength": 12}
    grammar = walker.compile("json_schema", json.dumps(schema))
    for text, is_whole in walker.answers(grammar, 20):
        assert not is_whole or jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
