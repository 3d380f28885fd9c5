"""Every spelling of a constraint, and what is wrong with two of them or half of one."""

import json
from typing import Any

import msgspec
import pytest

from services.gateway.job import parse_chat, parse_completion
from shared.errors import InvalidRequest
from shared.grammar import MAX_SOURCE_BYTES
from shared.messages import Constraint

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
PARTS = {"type": "sequence", "items": ["a", {"type": "regex", "pattern": "b+"}]}
TAG = {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}}


def constraint_of(endpoint: str, **fields: Any) -> Constraint | None:
    if endpoint == "chat":
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        return parse_chat(msgspec.json.encode(body | fields)).constraint
    return parse_completion(msgspec.json.encode({"model": "m", "prompt": ["a", "b"], "n": 2} | fields)).constraint


SPELLINGS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        "json_schema",
        json.dumps(SCHEMA, separators=(",", ":")),
        "response_format.json_schema.schema",
    ),
    ({"response_format": TAG}, "structural_tag", json.dumps(TAG, separators=(",", ":")), "response_format"),
    (
        {"response_format": {"type": "grammar", "grammar": PARTS}},
        "grammar",
        json.dumps(PARTS, separators=(",", ":")),
        "response_format.grammar",
    ),
    (
        {"response_format": {"type": "grammar", "grammar": 'root ::= "a"'}},
        "ebnf",
        'root ::= "a"',
        "response_format.grammar",
    ),
    (
        {"structured_outputs": {"grammar": PARTS}},
        "grammar",
        json.dumps(PARTS, separators=(",", ":")),
        "structured_outputs.grammar",
    ),
    ({"structured_outputs": {"json": "{}"}}, "json_schema", "{}", "structured_outputs.json"),
    ({"structured_outputs": {"json_object": True}}, "json_object", "", "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": "a+", "choice": None}}, "regex", "a+", "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]', "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"', "structured_outputs.grammar"),
    ({"guided_json": {"const": 1}}, "json_schema", '{"const":1}', "guided_json"),
    ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
    ({"guided_choice": ["a", "b"]}, "choice", '["a","b"]', "guided_choice"),
    ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "guided_grammar"),
    ({"json_schema": '{"type":"null"}'}, "json_schema", '{"type":"null"}', "json_schema"),
    ({"json_schema": False}, "json_schema", "false", "json_schema"),
    ({"regex": "[0-9]"}, "regex", "[0-9]", "regex"),
    ({"ebnf": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "ebnf"),
    ({"lark": 'start: "a"'}, "lark", 'start: "a"', "lark"),
    ({"choice": ["yes", "no"]}, "choice", '["yes","no"]', "choice"),
    ({"structural_tag": json.dumps(TAG)}, "structural_tag", json.dumps(TAG), "structural_tag"),
]


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
@pytest.mark.parametrize(("fields", "kind", "source", "param"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_spellings(endpoint: str, fields: dict[str, Any], kind: str, source: str, param: str) -> None:
    assert constraint_of(endpoint, **fields) == Constraint(kind=kind, source=source, param=param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None, "regex": None, "structured_outputs": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {"json_object": False, "disable_any_whitespace": True}},
    ],
)
def test_none(fields: dict[str, Any]) -> None:
    assert constraint_of("chat", **fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf"),
        ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"response_format": []}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": 5, "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "grammar"}}, "response_format.grammar"),
        ({"response_format": {"type": "grammar", "grammar": ["a"]}}, "response_format.grammar"),
        ({"response_format": {"type": "grammar", "grammar": ""}}, "response_format.grammar"),
        ({"response_format": {"type": "grammar", "grammar": PARTS}, "regex": "a"}, "regex"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs"),
        ({"structured_outputs": 5}, "structured_outputs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"regex": ["a"]}, "regex"),
        ({"regex": "a" * (MAX_SOURCE_BYTES + 1)}, "regex"),
        ({"regex": "a", "min_tokens": 3}, "min_tokens"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        constraint_of("chat", **fields)
    assert refused.value.param == param
    assert param.partition(".")[0] in refused.value.message


async def test_with_grammar_mode_off_a_constraint_is_a_400(start: Any) -> None:
    gateway = await start(grammar_mode="off")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    status, answer, _ = await gateway.post("/v1/chat/completions", {**body, "guided_regex": "a+"})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "guided_regex", "unsupported_parameter")


async def test_a_constraint_reaches_the_tokenizer_with_every_prompt(gateway: Any, backend: Any) -> None:
    backend.texts = ["a"]
    body = {"model": "tiny", "prompt": ["x", "y"], "n": 2, "choice": ["a", "b"]}
    status, _, _ = await gateway.post("/v1/completions", body)
    assert status == 200
    expected = Constraint(kind="choice", source='["a", "b"]', param="choice")
    assert [message.constraint for message in backend.seen] == [expected, expected]
