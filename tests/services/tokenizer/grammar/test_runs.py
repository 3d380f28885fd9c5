"""Runs of equal characters: exactly as many as may be, counted by rules up to a length, by xgrammar above."""

import json
import re
import time

import pytest
import xgrammar

from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.rules import MAX_COUNTING_RULES, MAX_RUN, Rules
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker

BUDGET = "max_chars"


def is_match(walker: Walker, grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


@pytest.mark.parametrize(
    ("least", "most"),
    [(0, 1), (0, 24), (1, 1), (3, 24), (7, 7), (0, 32), (1, MAX_RUN), (MAX_RUN - 1, MAX_RUN), (MAX_RUN + 9,) * 2],
)
def test_texts_have_exactly_the_lengths_asked_for(walker: Walker, least: int, most: int) -> None:
    schema = json.dumps({"type": "string", "minLength": least, "maxLength": most})
    assert BUDGET not in to_ebnf("json_schema", schema, MAX_CHARACTERS)
    grammar = walker.compile("json_schema", schema)
    for length in {0, 1, least - 1, least, least + 1, most - 1, most, most + 1} - {-1}:
        for text in ("x" * length, ("é\\\n€" * length)[:length]):
            spelled = json.dumps(text, ensure_ascii=False)
            assert is_match(walker, grammar, spelled) == (least <= length <= most), spelled


@pytest.mark.parametrize(("least", "most"), [(0, MAX_RUN + 1), (2, MAX_RUN + 1), (MAX_RUN + 2, MAX_RUN + 30)])
def test_an_escape_counts_twice_in_texts_that_xgrammar_counts(walker: Walker, least: int, most: int) -> None:
    schema = json.dumps({"type": "string", "minLength": least, "maxLength": most})
    assert BUDGET in to_ebnf("json_schema", schema, MAX_CHARACTERS)
    grammar = walker.compile("json_schema", schema)
    for length in {0, 1, least - 1, least, least + 1, most - 1, most, most + 1} - {-1}:
        for text in ("x" * length, ("é€𝄞" * length)[:length]):
            spelled = json.dumps(text, ensure_ascii=False)
            assert is_match(walker, grammar, spelled) == (least <= length <= most), spelled
        # as many as need not be counted are there in any case: nobody gets stuck before the shortest length
        assert is_match(walker, grammar, json.dumps("\n" * length)) == (least <= length <= max(least, -(-most // 2))), (
            length
        )


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        (r".*\S.*", 127),
        (r"\S", 200),
        (r"^\S(.*\S)?$", 128),
        ("foo|ba+r", 60),
        ("^.*@.*$", 100),
        ("^[a-z ]+[a-z0-9]+$", 40),
    ],
)
def test_texts_that_can_be_read_in_many_ways_are_counted_by_states(walker: Walker, pattern: str, most: int) -> None:
    """To the last character; and masks are no slower at their ends than at their beginnings."""
    schema = json.dumps({"type": "string", "pattern": pattern, "maxLength": most})
    grammar = walker.compile("json_schema", schema)
    for part in ("x", "foo", "baaar", "a@b", "x y", " "):
        for place in (0, 5, 20):
            for length in (len(part) + place, most - 1, most, most + 1):
                text = ("a" * place + part).ljust(length, "b")
                is_valid = re.search(pattern, text) is not None and length <= most
                assert is_match(walker, grammar, json.dumps(text)) == is_valid, text
    matcher = xgrammar.GrammarMatcher(grammar)
    assert matcher.accept_string('"')
    mask = xgrammar.allocate_token_bitmask(1, walker.info.vocab_size)
    started = time.thread_time()
    for _ in range(most - 20):
        matcher.fill_next_token_bitmask(mask)
        assert matcher.accept_string("b")
    assert (time.thread_time() - started) / (most - 20) < 0.002


@pytest.mark.parametrize(("pattern", "early"), [(r"\S", 128), ("foo", 64), ("x$|foo", 0)])
def test_what_must_be_in_a_long_text_comes_early(walker: Walker, pattern: str, early: int) -> None:
    most = 1000
    schema = json.dumps({"type": "string", "pattern": pattern, "maxLength": most})
    grammar = walker.compile("json_schema", schema)
    for length in (3, early - 1, early, early + 1, most - early, most - early + early // 2, most + 1):
        for text in (
            "c".ljust(length, "b"),
            "foo".ljust(length, "b"),
            " " * (length - 3) + "foo",
            "a" * (length - 1) + "c",
        ):
            is_valid = re.search(pattern, text) is not None and length <= most
            accepted = is_match(walker, grammar, json.dumps(text))
            assert is_valid or not accepted, text
            found = re.search(pattern, text)
            if early and found is not None and found.end() <= early and length - found.end() <= most - early:
                assert accepted, text


def test_what_is_too_long_to_be_looked_for_by_states_gets_a_share(walker: Walker) -> None:
    word = "https://example.com/schemas/"
    grammar = walker.compile("json_schema", json.dumps({"type": "string", "pattern": word, "maxLength": 200}))
    assert is_match(walker, grammar, json.dumps("a" * 80 + word + "b" * 80))
    assert not is_match(walker, grammar, json.dumps("a" * 80 + "b" * 80))
    assert not is_match(walker, grammar, json.dumps("a" * 100 + word + "b" * 100))


@pytest.mark.parametrize("least", [0, 1, 5])
def test_texts_without_a_longest_length(walker: Walker, least: int) -> None:
    grammar = walker.compile("json_schema", json.dumps({"type": "string", "minLength": least}))
    for text in ("x" * 300, "é" * least, 'a "b"\\ \t\n' * 3, "x" * least + "\\u0001\\u00e9"):
        assert is_match(walker, grammar, f'"{text}"' if "\\u" in text else json.dumps(text, ensure_ascii=False)), text
    assert not is_match(walker, grammar, '"\\ud800"')
    assert is_match(walker, grammar, '"' + "x" * (least - 1) + '"') == (least == 0)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("[a-z]{2,4}", ["ab", "abcd"], ["a", "abcde", "abC"]),
        ("[a-z]{2,4}-[0-9]{1,3}x?", ["ab-1", "abcd-123x"], ["abcd", "abcde-1", "ab-1234", "ab-x"]),
        ("[ab]{0,2}[bc]{0,2}", ["", "bb", "bbbb", "aacc"], ["bbbbb", "aaac", "ca"]),
        ("([ab]{1,2}c){2,3}", ["acbc", "abcabcabc"], ["ac", "acacacac", "aaac"]),
        ("x{3}|y{1,20}", ["xxx", "y", "y" * 20], ["xx", "y" * 21, ""]),
        ("[^x]{1,3}", ["é€\n", "a"], ["x", "aaaa", ""]),
        (f"a{{0,{MAX_RUN}}}", ["", "a" * MAX_RUN], ["a" * (MAX_RUN + 1)]),
        (f"a{{3,{MAX_RUN + 9}}}", ["aaa", "a" * (MAX_RUN + 9)], ["aa", "a" * (MAX_RUN + 10)]),
        ("a{500}", ["a" * 500], ["a" * 499, "a" * 501]),
    ],
)
def test_runs_in_patterns(walker: Walker, pattern: str, inside: list[str], outside: list[str]) -> None:
    plain = walker.compile("regex", pattern)
    quoted = walker.compile("json_schema", json.dumps({"type": "string", "pattern": f"^(?:{pattern})$"}))
    for text in inside + outside:
        expected = text in inside
        assert is_match(walker, plain, text) == (expected and bool(text or pattern.startswith(("[ab]", "a{0")))), text
        assert is_match(walker, quoted, json.dumps(text, ensure_ascii=False)) == expected, text


def test_strings_of_different_lengths_share_rules() -> None:
    def num_rules(lengths: list[int]) -> int:
        schema = {"type": "array", "prefixItems": [{"type": "string", "maxLength": n} for n in lengths]}
        return to_ebnf("json_schema", json.dumps(schema), MAX_CHARACTERS).count("::=")

    assert num_rules([100, 99, 50, 3]) - num_rules([100]) < 20


def test_what_there_is_no_room_for_is_counted_by_xgrammar() -> None:
    rules = Rules()
    length = 100
    for n in range(2 * MAX_COUNTING_RULES // length):
        rules.run(f"[a-{'bcdefghij'[n]}]", 1, length, '"."')
    text = rules.text("r0")
    assert text.count(BUDGET) > 0
    assert text.count("::=") < MAX_COUNTING_RULES + 10
    known = rules.run("[a-b]", 1, length, '"."')
    assert BUDGET not in text.split(known.strip("()").split()[-1] + " ::=")[0].splitlines()[-1]
