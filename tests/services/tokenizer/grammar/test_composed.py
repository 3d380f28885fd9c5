"""Grammars of parts, as rules: they match what they say, and what is wrong with them is said with its place."""

import json
import random
from typing import Any

import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood import grammar as g
from services.tokenizer.grammar.errors import Unenforceable
from tests.sapwood.grammar.random_grammars import Draw
from tests.services.tokenizer.grammar.random_walk import Walker


def compiled(walker: Walker, form: Any) -> xgrammar.CompiledGrammar:
    return walker.compile("grammar", json.dumps(form))


def accepts(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_completed()


@settings(max_examples=250, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_is_drawn_from_a_grammar_matches_it_and_what_is_near_is_judged_alike(walker: Walker, seed: int) -> None:
    draw = Draw(random.Random(seed))
    grammar = draw.grammar()
    if grammar is None:
        return
    form = grammar.to_json()
    rules = compiled(walker, form)
    for _ in range(4):
        text = draw.match(form)
        if text is None:
            continue
        assert accepts(rules, text), (form, text)
        assert grammar.parse(text).text == text
        other = draw.changed(text)
        try:
            grammar.parse(other)
        except g.AnswerError:
            assert not accepts(rules, other), (form, other)
        else:
            assert accepts(rules, other), (form, other)
