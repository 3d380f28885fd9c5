"""Answers to schemas drawn at random from the masks: all of them valid, by another implementation of the standard."""

import datetime
import json
import random
from typing import Any

import jsonschema
import pytest
import xgrammar

from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.errors import Unenforceable
from tests.services.tokenizer.grammar.keyword_schemas import SCHEMAS
from tests.services.tokenizer.grammar.random_schemas import VALUES, document
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker
from tests.services.tokenizer.grammar.real_schemas import every


def check(walker: Walker, schema: Any, count: int, *, seed: int = 0, max_tokens: int = 400) -> int:
    """How many answers ended by themselves; each of those is valid."""
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    grammar = walker.compile("json_schema", json.dumps(schema))
    ended = 0
    for text, is_whole in walker.answers(grammar, count, seed, max_tokens):
        if is_whole:
            ended += 1
            error = jsonschema.exceptions.best_match(validator.iter_errors(json.loads(text)))
            assert error is None, f"{text[:300]}: {error.message[:300]}"
    return ended


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_keywords(walker: Walker, schema: Any) -> None:
    assert check(walker, schema, 12, max_tokens=600) or schema == {"type": "string", "pattern": "foo"}


def test_schemas_of_real_kinds(walker: Walker) -> None:
    schemas = every()
    refused, ended = [], 0
    for name, schema in schemas:
        try:
            ended += check(walker, schema, 3, max_tokens=500)
        except Unenforceable as error:
            refused.append((name, str(error)))
    assert len(refused) <= len(schemas) * 0.05, refused
    assert ended > 2 * len(schemas)


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_random_schemas(walker: Walker, start: int) -> None:
    ended = 0
    for seed in range(start, start + 50):
        schema = document(random.Random(seed))
        try:
            ended += check(walker, schema, 4, seed=seed, max_tokens=150)
        except Unenforceable:
            continue
    assert ended > 50


def test_few_schemas_are_refused_that_allow_something() -> None:
    refused = 0
    for seed in range(400):
        schema = document(random.Random(seed))
        try:
            to_ebnf("json_schema", json.dumps(schema), MAX_CHARACTERS)
        except Unenforceable:
            try:
                refused += any(map(jsonschema.Draft202012Validator(schema).is_valid, VALUES))
            except RecursionError:
                continue
    assert refused <= 6


@pytest.mark.parametrize(
    ("schema", "pointer", "keyword"),
    [
        ({"type": "strnig"}, "", "type"),
        ({"properties": {"a/b": {"pattern": "(x)\\1"}}}, "/properties/a~1b", "pattern"),
        ({"properties": {"a": {"minLength": -1}}}, "/properties/a", "minLength"),
        ({"items": 5}, "/items", None),
        ({"$ref": "#/$defs/none"}, "", "$ref"),
        ({"$ref": "https://elsewhere.example/schema"}, "", "$ref"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}, "/properties/a", "$ref"),
        ({"type": "string", "minLength": 10**9}, "", None),
        ({"type": "array", "minItems": 10**9}, "", "minItems"),
        ({"type": "array", "items": {"type": "array"}, "uniqueItems": True, "minItems": 9}, "", "uniqueItems"),
        (False, "", None),
        ({"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}, "required": ["a"]}, "", None),
        ({"required": "a"}, "", "required"),
        ({"anyOf": []}, "", "anyOf"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "", None),
        ({"properties": {"n": {"$ref": "#"}}, "required": ["n"], "type": "object"}, "", None),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_refusals_say_where_and_what(schema: Any, pointer: str, keyword: str | None) -> None:
    with pytest.raises(Unenforceable) as refused:
        to_ebnf("json_schema", json.dumps(schema), MAX_CHARACTERS)
    assert (refused.value.pointer, refused.value.keyword) == (pointer, keyword)


def test_a_longest_length_beyond_any_answer_is_none(walker: Walker) -> None:
    assert check(walker, {"type": "string", "maxLength": 10**9}, 5)
    assert check(walker, {"type": "array", "items": {"type": "null"}, "maxItems": 10**9}, 5)


def test_properties_come_in_the_order_of_the_schema_with_fixed_white_space(walker: Walker) -> None:
    schema = {
        "type": "object",
        "properties": {"b": {"const": [1, {"x": 2}]}, "a": {"const": "é"}},
        "required": ["b", "a"],
    }
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert {text for text, _ in walker.answers(grammar, 3)} == {'{"b": [1, {"x": 2}], "a": "é"}'}


def test_formats_of_names_narrow_them_as_those_of_texts(walker: Walker) -> None:
    schema = {
        "type": "object",
        "properties": {"note": {"type": "integer"}},
        "propertyNames": {"anyOf": [{"format": "date"}, {"const": "note"}]},
        "additionalProperties": {"type": "integer"},
        "minProperties": 2,
    }
    grammar = walker.compile("json_schema", json.dumps(schema))
    ended = [json.loads(text) for text, is_whole in walker.answers(grammar, 20) if is_whole]
    assert ended
    for answer in ended:
        for name in answer.keys() - {"note"}:
            datetime.date.fromisoformat(name)


def test_a_format_that_leaves_no_name_is_an_annotation(walker: Walker) -> None:
    schema = {"propertyNames": {"format": "date", "maxLength": 3}, "minProperties": 1, "type": "object"}
    ended = [
        text for text, is_whole in walker.answers(walker.compile("json_schema", json.dumps(schema)), 20) if is_whole
    ]
    assert ended
    assert all(len(name) <= 3 for text in ended for name in json.loads(text))


def is_match(grammar: xgrammar.CompiledGrammar, value: Any) -> bool:
    return is_text_match(grammar, json.dumps(value, ensure_ascii=False))


def is_text_match(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text) and matcher.is_terminated())


def test_one_of_objects_that_differ_by_what_they_do_not_allow(walker: Walker) -> None:
    names = "abcdefghij"
    schema = {
        "oneOf": [
            {"type": "object", "additionalProperties": False, "properties": {name: {"type": "integer"}}}
            for name in names
        ]
    }
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert all(is_match(grammar, {name: 1}) for name in names)
    assert not is_match(grammar, {})
    assert check(walker, schema, 10)


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"not": {"additionalProperties": {"type": "null"}}}, {"other": 1}, {"other": None}),
        (
            {
                "properties": {"a": {}, "b": {"type": "null"}},
                "not": {"properties": {"b": {}}, "additionalProperties": False},
            },
            {"a": 1},
            {"b": None},
        ),
        ({"not": {"patternProperties": {"^a+$": {"type": "integer"}}}}, {"a": "x"}, {"a": 1}),
        (
            {
                "not": {"patternProperties": {"^x": False}, "additionalProperties": False},
                "enum": [{"x": 1}, {"y": 2}, {}],
            },
            {"x": 1},
            {},
        ),
    ],
)
def test_the_contrary_of_what_properties_are_allowed(walker: Walker, schema: Any, inside: Any, outside: Any) -> None:
    schema = {"type": "object", **schema}
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert is_match(grammar, inside)
    assert not is_match(grammar, outside)
    assert check(walker, schema, 15)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "integer"}, "minProperties": 2},
        {
            "properties": {"a": {"type": "integer"}},
            "patternProperties": {"^x$|^yy*$": {"type": "integer"}},
            "additionalProperties": False,
            "minProperties": 2,
        },
    ],
)
def test_a_name_that_is_written_twice_counts_once(walker: Walker, schema: Any) -> None:
    grammar = walker.compile("json_schema", json.dumps({"type": "object", **schema}))
    assert is_match(grammar, {"a": 1, "x": 2})
    assert not is_text_match(grammar, '{"x": 1, "x": 2}')
    assert check(walker, {"type": "object", **schema}, 10)


@pytest.mark.parametrize(
    ("schema", "kept"),
    [
        ({"const": 1e30, "multipleOf": 7}, None),
        ({"enum": [10**30, 5], "multipleOf": 5}, 10**30),
        ({"enum": [10**30 + 1, 5], "multipleOf": 5}, 5),
        ({"const": 5, "multipleOf": 1e-30}, 5),
    ],
)
def test_multiples_of_numbers_with_many_digits(walker: Walker, schema: Any, kept: int | None) -> None:
    if kept is None:
        with pytest.raises(Unenforceable):
            walker.compile("json_schema", json.dumps(schema))
    else:
        grammar = walker.compile("json_schema", json.dumps(schema))
        assert [value for value in (10**30 + 1, kept) if is_match(grammar, value)] == [kept]


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (
            {"type": "object", "properties": {"prénom": {}}, "patternProperties": {"^\\w+$": {"type": "integer"}}},
            {"prénom": 1},
            {"prénom": "a"},
        ),
        (
            {
                "type": "object",
                "required": ["é"],
                "patternProperties": {"^\\w+$": {"type": ["integer", "null"]}},
                "additionalProperties": {"type": ["integer", "string"]},
            },
            {"é": 1},
            {"é": "a"},
        ),
        ({"oneOf": [{"enum": ["é", "a-b"]}, {"type": "string", "pattern": "^\\w+$"}]}, "a-b", "é"),
        (
            {
                "oneOf": [
                    {"type": "object", "properties": {"a": {"enum": ["é", "a-b"]}}, "required": ["a"]},
                    {"type": "object", "properties": {"a": {"pattern": "^\\w+$"}}, "required": ["a"]},
                ],
            },
            {"a": "a-b"},
            {"a": "é"},
        ),
        (
            {
                "oneOf": [
                    {"enum": [{"é": 1}, {"b": "a"}]},
                    {
                        "type": "object",
                        "patternProperties": {"^\\w+$": {"type": "integer"}},
                        "additionalProperties": {"type": "string"},
                    },
                ]
            },
            {"b": "a"},
            {"é": 1},
        ),
    ],
)
def test_names_and_constants_that_dialects_of_regexes_judge_differently(
    walker: Walker, schema: Any, inside: Any, outside: Any
) -> None:
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert is_match(grammar, inside)
    assert not is_match(grammar, outside)
    assert check(walker, schema, 10)


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (
            [{"type": "array", "items": {"type": "integer"}}, {"type": "array", "not": {"uniqueItems": True}}],
            None,
            [1, 1],
        ),
        (
            [
                {"type": "object", "additionalProperties": {"type": "integer"}},
                {"type": "object", "not": {"propertyNames": {"pattern": "^a"}}},
            ],
            None,
            {"b": 1},
        ),
        (
            [
                {"enum": [{"p": {"zz": "s"}}, {"p": {"zz": 1}}]},
                {"properties": {"p": {"type": "object", "not": {"additionalProperties": {"type": "integer"}}}}},
            ],
            {"p": {"zz": 1}},
            {"p": {"zz": "s"}},
        ),
        (
            [{"enum": [[9] * 14, [9] * 13 + [1]]}, {"type": "array", "not": {"const": [9] * 14}}],
            [9] * 14,
            [9] * 13 + [1],
        ),
    ],
)
def test_alternatives_that_are_not_known_may_hold(walker: Walker, schema: Any, inside: Any, outside: Any) -> None:
    schema = {"oneOf": [*schema, {"const": "other"}]}
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert is_match(grammar, "other" if inside is None else inside)
    assert not is_match(grammar, outside)
    assert check(walker, schema, 10)


def test_names_that_are_no_unicode_are_written_as_escapes(walker: Walker) -> None:
    name = "\ud800"
    schema = {"type": "object", "properties": {name: {}}, "required": [name]}
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert is_text_match(grammar, '{"\\ud800": 1}')


def test_prefixes_are_unknown_to_older_drafts(walker: Walker) -> None:
    own = {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 1}
    old = {"$schema": "http://json-schema.org/draft-07/schema#", **own}
    grammar = walker.compile("json_schema", json.dumps(own))
    assert is_match(grammar, [1, "a"])
    grammar = walker.compile("json_schema", json.dumps(old))
    assert is_match(grammar, ["a", "a"])
    assert not is_match(grammar, [1, "a"])
    contrary = {"$schema": old["$schema"], "type": "array", "not": {"prefixItems": [{"type": "integer"}]}}
    with pytest.raises(Unenforceable):
        walker.compile("json_schema", json.dumps(contrary))


def test_many_patterns_for_names(walker: Walker) -> None:
    patterns = {
        f"^{kind} ": {"const": kind} for kind in ("table", "view", "index", "type", "domain", "rule", "job", "tag")
    }
    schema = {"type": "object", "patternProperties": patterns, "additionalProperties": False, "minProperties": 1}
    grammar = walker.compile("json_schema", json.dumps(schema))
    assert is_match(grammar, {"table x": "table"})
    assert not is_match(grammar, {"table x": "view"})
    assert not is_match(grammar, {"tablex": "table"})
    assert check(walker, schema, 10)


def test_beside_a_reference_older_drafts_say_nothing(walker: Walker) -> None:
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"n": {"$id": "#n", "type": "integer"}}}
    beside = {"$ref": "#n", "$id": "http://elsewhere.example/", "minimum": 5}
    grammar = walker.compile("json_schema", json.dumps({**old, "items": beside, "type": "array"}))
    assert is_match(grammar, [7])
    assert not is_match(grammar, [2])  # it is asked for, whatever the draft says
    assert not is_match(grammar, ["x"])
    contrary = walker.compile("json_schema", json.dumps({**old, "not": beside}))
    assert not is_match(contrary, 2)
    assert is_match(contrary, "x")
