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
from tests.sapwood.grammar.types_of_all_kinds import TYPES
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


def seq(*items: Any) -> dict[str, Any]:
    return {"type": "sequence", "items": list(items)}


def re(pattern: str) -> dict[str, Any]:
    return {"type": "regex", "pattern": pattern}


def either(*items: Any) -> dict[str, Any]:
    return {"type": "choice", "items": list(items)}


def rule(name: str) -> dict[str, Any]:
    return {"type": "rule", "name": name}


REFUSED: list[tuple[Any, str, str]] = [
    (seq("a", re("(")), "/items/1/pattern", "unmatched"),
    (seq("a", re("a(?=b)")), "/items/1/pattern", "lookahead"),
    (seq("a", re(r"[^\s\S]")), "/items/1/pattern", "no text"),
    (seq({"type": "json", "schema": {"properties": {"x": {"type": "y"}}}}), "/items/0/schema/properties/x", "type"),
    (seq({"type": "json", "schema": {"type": "array", "minItems": 2, "maxItems": 1}}), "/items/0/schema", "no value"),
    (seq(), "/items", "length >= 1"),
    (seq("a", 1), "/items/1", "got `int`"),
    (seq("a", {"type": "regexp"}), "/items/1/type", "regexp"),
    (seq("a", {"type": "regex", "pattern": "a", "flags": "i"}), "/items/1", "flags"),
    (seq({"type": "repeat", "item": "a", "min": 3, "max": 2}), "/items/0/min", "3 to 2"),
    (seq({"type": "repeat", "item": "a", "max": 99_999}), "/items/0/max", "10000"),
    (seq({"type": "repeat", "item": "a", "max": 0}), "/items/0/max", ">= 1"),
    (seq({"type": "any_text", "excludes": ["a"] * 101}), "/items/0/excludes", "length <= 100"),
    (seq({"type": "any_text", "excludes": [""]}), "/items/0/excludes/0", "length >= 1"),
    (seq({"type": "capture", "name": "", "item": "a"}), "/items/0/name", "length >= 1"),
    (seq("a", "\ud800"), "/items/1", "surrogate"),
    ({"type": "text", "text": ""}, "", "empty text only"),
    (seq("", {"type": "repeat", "item": re("a{0}")}), "", "empty text only"),
    (rule("x"), "/name", "not there"),
    ({"root": seq(rule("a"), rule("b")), "rules": {"a": "a"}}, "/root/items/1/name", "'b' that is not there"),
    ({"root": rule("a"), "rules": {"a": "a", "b": rule("b")}}, "/rules/b", "nothing leads"),
    ({"root": rule("a"), "rules": {"a": seq("(", rule("a"), ")")}}, "/rules/a", "never ends"),
    ({"root": rule("/~"), "rules": {"/~": either("x", seq(rule("/~"), "+"))}}, "/rules/~1~0", "itself"),
    (
        {"root": rule("a"), "rules": {"a": either("x", seq(re("-?"), rule("b"))), "b": rule("a")}},
        "/rules/a",
        "'a' -> 'b' -> 'a'",
    ),
    ({"root": rule("a"), "rules": {"a": {"type": "repeat", "item": rule("a")}}}, "/rules/a", "itself"),
    ({"root": "a", "rules": []}, "/rules", "object"),
    ({"root": "a", "rule": {}}, "", "'rule'"),
    ({"rules": {"a": "a"}}, "", "root"),
    ({"root": rule("a"), "rules": {"a": seq(5)}}, "/rules/a/items/0", "got `int`"),
    ({}, "", "type"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "pointer", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_refusals_say_where(walker: Walker, form: Any, pointer: str, words: str) -> None:
    with pytest.raises(Unenforceable) as refused:
        compiled(walker, form)
    assert (refused.value.pointer, words in refused.value.message) == (pointer, True), str(refused.value)


def test_parts_that_are_no_objects_of_grammars(walker: Walker) -> None:
    for form in ("a", ["a"], 1, None):
        with pytest.raises(Unenforceable, match="must be an object"):
            compiled(walker, form)


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (
            g.Grammar(g.repeat(g.json({"type": "null"}), separator=", ")),
            ["", "null", "null, null"],
            ["null,", "null, "],
        ),
        (g.Grammar(g.repeat("ab", 2, 3)), ["abab", "ababab"], ["ab", "abababab"]),
        (g.Grammar(g.any_text(stop=("ab", "xyz")) + "ab"), ["ab", "xyab", "aab"], ["xyzab", "abab", "ab "]),
        (g.Grammar("-" + g.any_text(stop="\n\n", max_chars=4)), ["-", "-\n", "-\na\nb"], ["-\n\n", "-abcde"]),
        (g.Grammar("-" + g.any_text(stop="\n\n", max_chars=400)), ["-" + "a" * 400], ["-" + "a" * 401]),
        (g.Grammar("-" + g.any_text(max_chars=3)), ["-", "-é\n1"], ["-abcd"]),
        (g.Grammar(g.repeat(g.repeat("a", 0, 3) | "ab")), ["a" * 9, "abab", "aab"], ["b", "abb"]),
        (g.Grammar(g.select("x", ["no", "not", "none"]) + "!"), ["no!", "not!"], ["non!", "no"]),
        (g.Grammar("x" + g.json(list[int]) + "y"), ["x[]y", "x[1, 2]y"], ["x[1,y", 'x["1"]y']),
    ],
    ids=repr,
)
def test_what_matches_and_what_does_not(walker: Walker, grammar: g.Grammar, right: list[str], wrong: list[str]) -> None:
    rules = compiled(walker, grammar.to_json())
    assert [text for text in right if not accepts(rules, text)] == []
    assert [text for text in wrong if accepts(rules, text)] == []


def test_rules_may_contain_themselves(walker: Walker) -> None:
    @g.rule
    def value() -> Any:
        return g.regex("[0-9]") | "(" + g.repeat(value, 1, 4, separator=" ") + ")"

    rules = compiled(walker, g.Grammar(value).to_json())
    assert all(accepts(rules, text) for text in ("1", "(1)", "(1 (2 3) ((4)) 5)", "(" * 50 + "1" + ")" * 50))
    assert not any(accepts(rules, text) for text in ("", "()", "(1", "1)", "(1 2 3 4 5)", "(1  2)"))


def test_parts_that_no_automaton_can_hold_together_are_rules_of_their_own(walker: Walker) -> None:
    parts = g.seq(*[g.regex("(a|b)*a(a|b){6}")] * 3, g.repeat(g.regex("a+") | "b" + g.regex("a+"), 1))
    rules = compiled(walker, g.Grammar(parts).to_json())
    assert accepts(rules, "abbbbbb" * 3 + "aba")
    assert not accepts(rules, "abbbbbb" * 3 + "ab")


def test_a_tag_may_hold_a_grammar_of_parts(walker: Walker) -> None:
    content = {"type": "grammar", "grammar": g.Grammar("n" + g.json(int)).to_json()}
    tag = {"type": "structural_tag", "format": {"type": "tag", "begin": "<n>", "content": content, "end": "</n>"}}
    rules = walker.compile("structural_tag", json.dumps(tag))
    assert accepts(rules, "<n>n12</n>")
    assert not accepts(rules, "<n>12</n>")
    content["grammar"] = seq(re(")"))
    with pytest.raises(Unenforceable) as refused:
        walker.compile("structural_tag", json.dumps(tag))
    assert refused.value.pointer == "/format/content/grammar/items/0/pattern"


@pytest.mark.parametrize("name", TYPES)
def test_what_is_written_for_a_type_can_be_read_as_it(walker: Walker, name: str) -> None:
    grammar = g.Grammar("=" + g.gen("it", TYPES[name]))
    rules = compiled(walker, grammar.to_json())
    read = 0
    for text, is_whole in walker.answers(rules, 25, max_tokens=300, errors="replace"):
        if is_whole and "\ufffd" not in text:
            assert "it" in grammar.parse(text), text
            read += 1
    assert read
