"""Messages on their way to the template."""

from typing import Any

import pytest

from services.gateway.conversation import normalise
from shared.errors import InvalidRequest


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_contents_become_text() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant"},
    ]
    assert normalise(messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "Ann"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "assistant", "content": ""},
    ]


def test_tool_arguments_become_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    bare = {"id": "2", "type": "function", "function": {"name": "g"}}
    (message,) = normalise([{"role": "assistant", "content": None, "tool_calls": [call, bare]}])
    assert [made["function"] for made in message["tool_calls"]] == [
        {"name": "f", "arguments": {"x": 1}},
        {"name": "g", "arguments": {}},
    ]
    assert call["function"]["arguments"] == '{"x": 1}', "the client's message is left as it was"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}), (" \n", {}), ("null", {}), (" null ", {}), ('{"a": null}', {"a": None}),
        ('{"a": 1', '{"a": 1'), ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'), ("[1]", "[1]"), ("city", "city"),
        ('{"a":' * 1000, '{"a":' * 1000), ('{"a": ' + "[" * 70 + "]" * 70 + "}", '{"a": ' + "[" * 70 + "]" * 70 + "}"),
    ],
)  # fmt: skip
def test_arguments_that_a_model_wrote_wrong_come_back_as_they_are(text: str, arguments: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    (message,) = normalise([{"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_leave_no_field_that_a_template_could_ask_for(calls: object) -> None:
    (message,) = normalise([{"role": "assistant", "content": "hi", "tool_calls": calls}])
    assert message == {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({}, "role"),
        ({"role": "robot", "content": "x"}, "role"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": [5]}, "content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content[0].type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "content[0].type"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls"),
        ({"role": "tool", "content": "x", "tool_call_id": 1}, "tool_call_id"),
        ({"role": "assistant", "tool_calls": [{}]}, "tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]},
            "tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]},
            "tool_calls[0].function.arguments",
        ),
    ],
)
def test_refusal_names_the_place(message: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        normalise([{"role": "user", "content": "fine"}, message])
    assert refused.value.param == f"messages[1].{path}"


def test_depth_is_limited() -> None:
    normalise([{"role": "user", "content": "x", "extra": nested(63)}])
    with pytest.raises(InvalidRequest) as refused:
        normalise([{"role": "user", "content": "x", "extra": nested(64)}])
    assert refused.value.param == "messages[0]"
