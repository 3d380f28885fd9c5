"""What a request may say about tools, and that a bad one is told which field is wrong."""

from typing import Any

import msgspec
import pytest

from services.gateway.job import Job, parse_chat
from services.gateway.tools import check_beside_constraint
from shared.errors import InvalidRequest
from shared.messages import ChatPrompt, Constraint, ToolCalling


def a_tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def chat(**fields: Any) -> Job:
    messages = [{"role": "user", "content": "hi"}]
    return parse_chat(msgspec.json.encode({"model": "m", "messages": messages, **fields}))


@pytest.mark.parametrize(
    ("fields", "calling"),
    [
        ({}, ToolCalling()),
        ({"tool_choice": None, "parallel_tool_calls": None}, ToolCalling()),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolCalling(parallel=False)),
        ({"tool_choice": "required"}, ToolCalling(choice="required")),
        ({"tool_choice": "none"}, None),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}},
            ToolCalling(choice="function", name="g"),
        ),
    ],
)
def test_a_choice_travels_with_the_tools(fields: dict[str, Any], calling: ToolCalling | None) -> None:
    tools = [a_tool(description="d", parameters={"type": "object", "properties": {}}, strict=True), a_tool("g")]
    job = chat(tools=tools, **fields)
    assert job.tool_calling == calling
    (prompt,) = job.prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools == tools


def test_no_tools_is_no_choice() -> None:
    for fields in ({}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"tool_choice": "none"}):
        assert chat(**fields).tool_calling is None


def test_reasoning_is_separate_unless_refused() -> None:
    assert chat().separate_reasoning
    assert not chat(separate_reasoning=False).separate_reasoning


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [a_tool(), {"type": "function", "function": {}}]}, "tools[1].function.name"),
        ({"tools": [a_tool("a b")]}, "tools[0].function.name"),
        ({"tools": [a_tool("x" * 129)]}, "tools[0].function.name"),
        ({"tools": [a_tool('f"')]}, "tools[0].function.name"),
        ({"tools": [a_tool(), a_tool("g"), a_tool()]}, "tools[2].function.name"),
        ({"tools": [a_tool(description=1)]}, "tools[0].function.description"),
        ({"tools": [a_tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [a_tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [a_tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
        ({"tools": [a_tool(str(place)) for place in range(1025)]}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": {}}, "tools"),
        ({"tools": [a_tool()], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [a_tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [a_tool()], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": [a_tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice.function.name"),
        ({"tools": [a_tool()], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_refusal_names_the_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


def test_what_goes_beside_a_constraint() -> None:
    schema = Constraint(kind="json_schema", source="{}", param="response_format")
    check_beside_constraint(ToolCalling(), schema)
    for calling, constraint in (
        (ToolCalling(choice="required"), schema),
        (ToolCalling(choice="function", name="f"), schema),
        (ToolCalling(), Constraint(kind="regex", source="a", param="regex")),
    ):
        with pytest.raises(InvalidRequest) as refused:
            check_beside_constraint(calling, constraint)
        assert refused.value.param == constraint.param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [a_tool()]}, None),
        ({"tools": [a_tool(strict=True)], "tool_choice": "none"}, None),
        ({"tools": [a_tool(), a_tool("g", strict=True)]}, "tools[1].function.strict"),
        ({"tools": [a_tool()], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [a_tool()], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [a_tool()], "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_the_decoder_enforces_is_known(fields: dict[str, Any], param: str | None) -> None:
    assert chat(**fields).enforced == param


def test_a_schema_beside_a_required_call_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(tools=[a_tool()], tool_choice="required", response_format={"type": "json_object"})
    assert refused.value.param == "response_format"
