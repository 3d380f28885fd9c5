"""Many choices become an automaton: what is accepted is the same, and similar texts share their states."""

import json
import random

import pytest
import xgrammar

from services.tokenizer.grammar import rules
from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.rules import Rules, one_of_texts
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker

ALPHABET = 'ab\xe9"\\]^\n-\0'


def is_match(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text) and matcher.is_terminated())


@pytest.mark.parametrize("count", [3, 30, 300])
@pytest.mark.parametrize("length", [2, 7])
def test_accepts_the_texts_and_no_others(
    walker: Walker, monkeypatch: pytest.MonkeyPatch, count: int, length: int
) -> None:
    monkeypatch.setattr(rules, "MAX_FLAT", 1)
    draw = random.Random(count * length)

    def text() -> str:
        return "".join(draw.choices(ALPHABET, k=draw.randint(1, length)))

    texts = {text() for _ in range(count)}
    grammar = walker.compile("choice", json.dumps(sorted(texts)))
    assert all(is_match(grammar, one) for one in texts)
    for other in {text() for _ in range(300)} - texts:
        assert not is_match(grammar, other), other


def test_similar_texts_share_their_states() -> None:
    values = [f"value {number} of an enum" for number in range(15_000)]
    source = to_ebnf("json_schema", json.dumps({"enum": values}), MAX_CHARACTERS)
    assert source.count("::=") < 50
    assert len(source) < 10_000


def test_a_chain_of_texts_that_go_on_in_each_other_is_no_recursion(walker: Walker) -> None:
    texts = ["a" * count for count in range(1, 1500)]
    own = Rules()
    grammar = own.text(own.add(one_of_texts(texts, own)))
    assert grammar.count("::=") <= 1501


def test_values_of_all_types_beside_other_keywords(walker: Walker) -> None:
    values = [*range(100), True, None, *(f"v{number}" for number in range(100)), {"a": [1, 2.0]}, [1, "b"]]
    schema = {"enum": values, "not": {"enum": [1.0, "v7", {"a": [1.0, 2]}]}, "allOf": [{"enum": values[1:]}]}
    grammar = walker.compile("json_schema", json.dumps(schema))
    for value in (0, 1, "v7", {"a": [1, 2]}):
        assert not is_match(grammar, json.dumps(value)), value
    for value in (2, 99, True, None, "v0", "v99", [1, "b"]):
        assert is_match(grammar, json.dumps(value)), value
