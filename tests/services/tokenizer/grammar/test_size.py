"""Schemas that people use become grammars that are compiled in seconds: what follows alike is one rule."""

import json
import re
from typing import Any

import jsonschema
import pytest
import xgrammar

from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.dfa import components
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker


def num_rules(schema: Any) -> int:
    return to_ebnf("json_schema", json.dumps(schema), MAX_CHARACTERS).count("::=")


def is_match(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def accepts(walker: Walker, schema: Any, value: Any) -> bool:
    return is_match(walker.compile("json_schema", json.dumps(schema)), json.dumps(value, ensure_ascii=False))


def test_texts_that_must_differ_share_what_comes_behind_their_first_character(walker: Walker) -> None:
    item = {"type": "string", "maxLength": 40, "pattern": "^[^:/]+$"}
    assert num_rules({"type": "array", "items": item, "uniqueItems": True}) < 200
    loop = {"type": "string", "pattern": "^[a-z]+([0-9][a-z]+)*$"}
    schema = {"type": "array", "items": loop, "uniqueItems": True}
    assert num_rules(schema) < 120
    assert accepts(walker, schema, ["ab1c", "bcd", "z9z"])
    assert not accepts(walker, schema, ["ab1"])
    assert not accepts(walker, schema, ["ab1c", "ab1c"])


@pytest.mark.parametrize("pattern", ["^(ab|cb)*$", "^(a(b|c)d|e(b|c)d)+x?$", "^((a|b)(c|d)*)*z$", "^(aa)*(aaa)*$"])
def test_shared_loops_match_the_same(walker: Walker, pattern: str) -> None:
    schema = {"type": "array", "items": {"anyOf": [{"type": "string", "pattern": pattern}, {"const": 0}]}}
    again = {"type": "array", "prefixItems": [schema, {"type": "string", "pattern": f"^(?:q{pattern[1:-1]})$"}]}
    for text in ("", "ab", "abcb", "abd", "abdecd", "ecdx", "z", "acdz", "bz", "aaaaa", "a", "aaaaaaa", "cbx"):
        expected = re.search(pattern, text) is not None
        assert accepts(walker, schema, [text, 0]) == expected, text
        assert accepts(walker, again, [[text, text], "q" + text]) == expected, text


def test_names_beside_many_known_ones(walker: Walker) -> None:
    known = [f"{first}{second}etting-{third}" for first in "abcdefgh" for second in "so" for third in "xyz"]
    schema = {"properties": {key: {"type": "null"} for key in known}, "additionalProperties": {"type": "integer"}}
    assert num_rules(schema) < 250
    for name in ("z", "a", "ae", "b-setting", "zs-etting", "é"):
        assert accepts(walker, schema, {name: 1}), name
    for name in known:
        assert accepts(walker, schema, {name: None})
        assert not accepts(walker, schema, {name: 1})
    few = {"properties": {"ab": {}, "abc": {}, "b": {}}, "additionalProperties": {"type": "integer"}}
    for name in ("a", "abd", "abcd", "bb", "c", "ac"):
        assert accepts(walker, few, {name: 1}), name
    few["properties"] = {key: {"type": "null"} for key in few["properties"]}
    for name in ("ab", "abc", "b", ""):
        assert not accepts(walker, few, {name: 1}), name


def test_resources_that_refer_to_each_other_dynamically_have_an_end(walker: Walker) -> None:
    schema = {
        "$id": "https://x.example/a",
        "$dynamicAnchor": "node",
        "properties": {"b": {"$ref": "b"}, "v": {"type": "integer"}},
        "$defs": {
            "b": {"$id": "b", "$dynamicAnchor": "node", "type": "object", "properties": {"a": {"$dynamicRef": "#node"}}}
        },
    }
    assert accepts(walker, schema, {"b": {"a": {"b": {"a": {"v": 1}}}}})
    assert not accepts(walker, schema, {"b": {"a": {"v": "x"}}})


def test_references(walker: Walker) -> None:
    urn = {"$id": "urn:x:1", "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"const": 1}}}
    assert accepts(walker, urn, {"a": 1})
    assert not accepts(walker, urn, {"a": 2})
    schema = {
        "$id": "https://x.example/root",
        "x-notes": {"$id": "https://x.example/item", "type": "null"},
        "$defs": {"enum": {"$id": "https://x.example/item", "type": "string"}},
        "anyOf": [{"$ref": "item"}, {"$ref": "#/x-more/0"}],
        "x-more": [{"const": 5}],
    }
    assert accepts(walker, schema, "a")
    assert accepts(walker, schema, 5)
    assert not accepts(walker, schema, None)


def test_components_come_behind_first() -> None:
    assert list(components([[1], [2], [1, 3], []])) == [[3], [1, 2], [0]]
    chain = [[n + 1] for n in range(5000)] + [[0]]
    assert [len(group) for group in components(chain)] == [5001]


def test_of_too_many_combinations_some_are_taken(walker: Walker) -> None:
    least, most = [{"minLength": n} for n in range(20)], [{"maxLength": n} for n in range(30, 50)]
    schema = {"type": "string", "allOf": [{"anyOf": least}, {"anyOf": most}]}
    assert accepts(walker, schema, "x" * 25)
    assert not accepts(walker, schema, "x" * 50)
    # what is not known of one alternative may not pass as being no other's
    exclusive = {"oneOf": [{"type": "string", "maxLength": 3}, schema]}
    assert not accepts(walker, exclusive, "abc")


def test_more_listed_alternatives_than_can_be_combined_are_all_taken(walker: Walker) -> None:
    schema = {"anyOf": [{"type": "array", "prefixItems": [{"const": n}], "minItems": 1} for n in range(300)]}
    assert accepts(walker, schema, [0])
    assert accepts(walker, schema, [299])
    assert not accepts(walker, schema, [400])


def test_a_text_whose_pattern_and_length_are_too_much_is_kept_shorter(walker: Walker) -> None:
    pattern = "^(" + "|".join(f"{letter}{letter}x+" for letter in "abcd") + ")*$"
    schema = {"type": "string", "pattern": pattern, "not": {"pattern": "xxxx"}, "maxLength": 900}
    assert num_rules(schema) < 1500
    assert accepts(walker, schema, "aaxbbxx")
    assert not accepts(walker, schema, "aaxxxx")


def test_bounds_beyond_any_number_are_none(walker: Walker) -> None:
    schema = {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}
    assert accepts(walker, schema, 5)
    assert accepts(walker, {"exclusiveMinimum": 2, "exclusiveMaximum": 10**200}, 3)
    assert not accepts(walker, {"exclusiveMinimum": 2, "exclusiveMaximum": 10**200}, 2)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "[a-z0-9][.a-z0-9-]{1,61}[a-z0-9]", "minLength": 3, "maxLength": 63}, "my-bucket.x"),
        ({"pattern": "^ab{0,63}:[a-z]{0,1024}$", "minLength": 20, "maxLength": 2048}, "a:" + "x" * 18),
        ({"pattern": "arn:([a-z0-9-]+):[0-9]{12}:cert/.{1,2048}"}, "arn:aws:123456789012:cert/x"),
        ({"pattern": r"^(?=.{1,255}$)([a-z]([a-z-]{0,61}[a-z])?)(\.[a-z]{1,61})*$", "maxLength": 255}, "a.b"),
        ({"pattern": "^([\\p{L}_]{1,128})$", "not": {"pattern": "^x"}}, "gr\xfcn"),
        ({"not": {"pattern": "[ab][a-z]{1,200}x{3,90}c{5}"}, "minLength": 1}, "abx"),
        ({"pattern": "^[a-z]+$|(x|y)*hp.*ux[a-z]{100}.{5,200}z"}, "abc"),
    ],
)
def test_patterns_too_complex_to_be_searched_for_are_matched_alone(walker: Walker, schema: Any, text: str) -> None:
    schema = {"type": "string", **schema}
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert is_match(grammar, json.dumps(text, ensure_ascii=False))
    assert not is_match(grammar, '""')
    for answer, is_whole in walker.answers(grammar, 5):
        if is_whole and "p{" not in schema.get("pattern", ""):
            assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(answer))


@pytest.mark.parametrize(
    "item",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "additionalProperties": False},
        {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        {"type": "array"},
        {"anyOf": [{"const": True}, {"type": "object"}]},
        {"type": "object", "required": ["k"], "properties": {"k": {"type": "array", "items": {"type": "boolean"}}}},
    ],
)
def test_items_of_any_type_can_differ(walker: Walker, item: Any) -> None:
    schema = {"type": "array", "uniqueItems": True, "minItems": 2, "items": item}
    validator = jsonschema.Draft202012Validator(schema)
    grammar = walker.compile("json_schema", json.dumps(schema))
    ended = [json.loads(text) for text, is_whole in walker.answers(grammar, 20) if is_whole]
    assert ended
    assert all(map(validator.is_valid, ended))
