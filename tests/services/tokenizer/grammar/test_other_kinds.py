"""Choices, grammars of the client's own, structural tags, any JSON object."""

import json
from typing import Any

import pytest
import xgrammar

from services.tokenizer.grammar.errors import Unenforceable
from tests.services.tokenizer.grammar.random_walk import Walker


def drawn(walker: Walker, kind: str, source: str, count: int = 10) -> set[str]:
    return {text for text, is_whole in walker.answers(walker.compile(kind, source), count) if is_whole}


def test_choice(walker: Walker) -> None:
    choices = ["yes", "no", 'a "quoted" one', "line\nbreak", "é😀", "yesterday", "\\"]
    assert drawn(walker, "choice", json.dumps(choices), 60) <= set(choices)
    for wrong in ([""], ["a"] * 20_001):
        with pytest.raises(Unenforceable):
            walker.compile("choice", json.dumps(wrong))


def test_any_object(walker: Walker) -> None:
    found = drawn(walker, "json_object", "")
    assert found
    assert all(isinstance(json.loads(text), dict) for text in found)


def test_ebnf(walker: Walker) -> None:
    grammar = 'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9] | "(" expr ")"\n'
    found = drawn(walker, "ebnf", grammar)
    assert found
    assert all(set(text) <= set("0123456789+()") and text.count("(") == text.count(")") for text in found)


def test_lark(walker: Walker) -> None:
    grammar = 'start: greeting " " NAME\ngreeting: "hello" | "bye"\nNAME: /[A-Z][a-z]{1,4}/\n'
    found = drawn(walker, "lark", grammar)
    assert found
    assert all(text.split(" ")[0] in ("hello", "bye") and text.split(" ")[1].isalpha() for text in found)


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("ebnf", 'start ::= "a"', "no rule 'root'"),
        ("ebnf", "root ::= " + "(" * 500 + '"a"' + ")" * 500, "nested"),
        ("ebnf", 'root ::= "a"{1,99999}', "repeat"),
        ("lark", 'root: "a"', "no rule 'start'"),
        ("lark", "start: %json {}\n%json {}", "%json"),
        ("lark", r"start: /[a\]]x[\^~]/", "class that begins"),
        ("structural_tag", "[]", "object"),
        ("structural_tag", "{}", "format"),
        ("structural_tag", "{", "JSON"),
    ],
)
def test_refusals(walker: Walker, kind: str, source: str, words: str) -> None:
    with pytest.raises(Unenforceable, match=words):
        walker.compile(kind, source)


@pytest.mark.parametrize("kind", ["ebnf", "lark"])
def test_undefined_rules_are_an_error_of_xgrammar(walker: Walker, kind: str) -> None:
    with pytest.raises(RuntimeError):
        walker.compile(kind, "root ::= missing" if kind == "ebnf" else "start: missing")


def tag(schema: Any) -> dict[str, Any]:
    content = {"type": "json_schema", "json_schema": schema}
    return {
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<call>", "content": content, "end": "</call>"},
    }


def test_a_tags_schema_is_enforced_as_if_it_stood_alone(walker: Walker) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "maxItems": 3}
    found = drawn(walker, "structural_tag", json.dumps(tag(schema)))
    assert found
    for text in found:
        assert text.startswith("<call>[")
        assert 5 in json.loads(text.removeprefix("<call>").removesuffix("</call>"))


def test_the_older_form_of_tags(walker: Walker) -> None:
    old = {"structures": [{"begin": "<f>", "schema": {"const": 1}, "end": "</f>"}], "triggers": ["<f"]}
    grammar = walker.compile("structural_tag", json.dumps(old))
    matcher = xgrammar.GrammarMatcher(grammar)
    assert matcher.accept_string("some text <f>1")
    assert not matcher.accept_string("2")
    assert matcher.accept_string("</f> and more")


def test_a_refusal_in_a_tag_says_where(walker: Walker) -> None:
    with pytest.raises(Unenforceable) as refused:
        walker.compile("structural_tag", json.dumps(tag({"properties": {"a": {"type": "x"}}})))
    assert refused.value.pointer == "/format/content/json_schema/properties/a"


@pytest.mark.parametrize(
    ("content", "words", "pointer"),
    [
        ({"type": "qwen_xml_parameter", "json_schema": {"not": {}}}, "style", ""),
        ({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}, "style", ""),
        ({"type": "grammar", "grammar": 'root ::= "a"{1,3000000}'}, "repeat of more", "/grammar"),
        ({"type": "grammar", "grammar": 'other ::= "a"'}, "no rule 'root'", "/grammar"),
        ({"type": "grammar", "grammar": 1}, "string or an object", ""),
    ],
)
def test_what_a_tag_cannot_hold_is_refused_with_its_place(
    walker: Walker, content: dict[str, Any], words: str, pointer: str
) -> None:
    form = {"type": "sequence", "elements": [{"type": "const_string", "value": "x"}, content]}
    with pytest.raises(Unenforceable, match=words) as refused:
        walker.compile("structural_tag", json.dumps({"type": "structural_tag", "format": form}))
    assert refused.value.pointer == f"/format/elements/1{pointer}"


def test_a_grammar_in_a_tag(walker: Walker) -> None:
    content = {"type": "grammar", "grammar": 'root ::= "a"{1,3}'}
    form = {"type": "tag", "begin": "<", "content": content, "end": ">"}
    found = drawn(walker, "structural_tag", json.dumps({"type": "structural_tag", "format": form}), 30)
    assert found
    assert found <= {"<a>", "<aa>", "<aaa>"}
