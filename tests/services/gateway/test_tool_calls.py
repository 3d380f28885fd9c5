"""Tool calls and reasoning as the `openai` client sees them, its helpers included."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from shared.messages import Channel, Deltas, FinishReason, ToolCalling, sequence_id, tool_call_id

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather?"}]


class GetWeather(BaseModel):
    city: str
    days: int = 1


class Answer(BaseModel):
    steps: list[str]
    result: int


TOOLS: list[Any] = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
CALLS: list[tuple[Channel, int, str]] = [
    (Channel.CALL_NAME, 0, "get_weather"),
    (Channel.CALL_ARGUMENTS, 0, '{"city": "Zü'),
    (Channel.CALL_ARGUMENTS, 0, 'rich", "days": 2}'),
    (Channel.CALL_NAME, 1, "get_weather"),
    (Channel.CALL_ARGUMENTS, 1, '{"city": "Oslo", "days": 1}'),
]


def content(*texts: str) -> list[tuple[Channel, int, str]]:
    return [(Channel.CONTENT, 0, text) for text in texts]


def serve(backend: Any, pieces: Sequence[tuple[Channel, int, str]], **end: Any) -> "asyncio.Task[Any]":
    """Answers the next request with the pieces, a message each."""

    async def answer() -> Any:
        request = await backend.next()
        offset = 0
        for place, (channel, call, text) in enumerate(pieces):
            for choice in range(request.n):
                delta = backend.a_delta(request, text, choice, offset, place + 1)
                delta = type(delta)(**{**{f: getattr(delta, f) for f in delta.__struct_fields__},
                                       "channel": channel, "call": call})  # fmt: skip
                backend.send(request, Deltas(deltas=[delta]))
            offset += len(text)
        for choice in range(request.n):
            backend.finish(request, choice=choice, **{"num_tokens": len(pieces), **end})
        return request

    return asyncio.create_task(answer())


async def test_calls_in_a_plain_answer(gateway: Any, backend: Any) -> None:
    serving = serve(backend, CALLS)
    answer = await gateway.openai().chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=True
    )
    request = await serving
    assert request.tool_calling == ToolCalling(choice="required")
    assert request.prompt.tools == TOOLS
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_weather"]
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Zürich", "Oslo"]
    sequence = sequence_id(request.request_id, 0)
    assert [call.id for call in calls] == [tool_call_id(sequence, 0), tool_call_id(sequence, 1)]
    assert len({call.id for call in calls}) == 2


async def test_streamed_calls_are_the_plain_ones(gateway: Any, backend: Any) -> None:
    pieces = [*content("Let me", " see."), *CALLS, *content("\nDone")]
    client = gateway.openai()
    serving = serve(backend, pieces)
    plain = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    await serving
    serving = serve(backend, pieces)
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, stream=True)
    chunks = [chunk async for chunk in stream]
    await serving
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == plain.choices[0].message.content == "Let me see.\nDone"
    made: dict[int, dict[str, str]] = {}
    for delta in deltas:
        for part in delta.tool_calls or []:
            if part.index not in made:
                assert part.type == "function"
                made[part.index] = {"name": part.function.name, "arguments": part.function.arguments}
            else:
                assert (part.id, part.type, part.function.name) == (None, None, None)
                made[part.index]["arguments"] += part.function.arguments
    assert list(made.values()) == [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in plain.choices[0].message.tool_calls
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


async def test_parse_gives_tools_their_pydantic_arguments(gateway: Any, backend: Any) -> None:
    serve(backend, CALLS)
    parsed = await gateway.openai().chat.completions.parse(model="tiny", messages=MESSAGES, tools=TOOLS)
    arguments = [call.function.parsed_arguments for call in parsed.choices[0].message.tool_calls]
    assert arguments == [GetWeather(city="Zürich", days=2), GetWeather(city="Oslo", days=1)]


async def test_the_stream_helper_with_tools(gateway: Any, backend: Any) -> None:
    serve(backend, [*content("Hm. "), *CALLS])
    done, fragments = [], ""
    async with gateway.openai().chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta" and event.index == 0:
                fragments += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                done.append((event.index, event.parsed_arguments))
        final = await stream.get_final_completion()
    assert fragments == '{"city": "Zürich", "days": 2}'
    assert done == [(0, GetWeather(city="Zürich", days=2)), (1, GetWeather(city="Oslo", days=1))]
    message = final.choices[0].message
    assert message.content == "Hm. "
    assert [call.function.parsed_arguments for call in message.tool_calls] == [arguments for _, arguments in done]


async def test_content_stays_null_in_a_stream_of_calls_alone(gateway: Any, backend: Any) -> None:
    serve(backend, CALLS)
    async with gateway.openai().chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content is None
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_reasoning_has_a_field_of_its_own(gateway: Any, backend: Any, is_streamed: bool) -> None:
    serve(backend, [(Channel.REASONING, 0, "Two and"), (Channel.REASONING, 0, " two"), *content("4")],
          reasoning_tokens=2)  # fmt: skip
    client = gateway.openai()
    if is_streamed:
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        reasoning = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
        said = "".join(delta.content or "" for delta in deltas)
        usage = chunks[-1].usage
    else:
        answer = await client.chat.completions.create(model="tiny", messages=MESSAGES)
        message, usage = answer.choices[0].message, answer.usage
        reasoning, said = message.model_extra["reasoning_content"], message.content
    assert (reasoning, said) == ("Two and two", "4")
    assert usage.completion_tokens_details.reasoning_tokens == 2


async def test_a_call_cut_by_length_is_given_as_far_as_it_went(gateway: Any, backend: Any) -> None:
    serve(backend, CALLS[:2], reason=FinishReason.LENGTH)
    answer = await gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Zü'
    serve(backend, CALLS[:2], reason=FinishReason.LENGTH)
    with pytest.raises(openai.LengthFinishReasonError):
        await gateway.openai().chat.completions.parse(model="tiny", messages=MESSAGES, tools=TOOLS)


async def test_a_stop_string_in_a_call_is_a_stop(gateway: Any, backend: Any) -> None:
    serve(backend, CALLS[:2], stop_reason="ri")
    answer = await gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, stop="ri")
    assert answer.choices[0].finish_reason == "stop"


async def test_each_choice_has_calls_and_ids_of_its_own(gateway: Any, backend: Any) -> None:
    serving = serve(backend, CALLS)
    answer = await gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, n=2)
    await serving
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 4


async def test_calls_sent_twice_after_a_takeover_come_once(gateway: Any, backend: Any) -> None:
    """The new owner of the shard cuts the same characters elsewhere."""
    task = asyncio.create_task(gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS))
    request = await backend.next()

    def send(*pieces: tuple[Channel, int, str, int]) -> None:
        for channel, call, text, offset in pieces:
            delta = backend.a_delta(request, text, 0, offset, 1)
            fields = {name: getattr(delta, name) for name in delta.__struct_fields__}
            backend.send(request, Deltas(deltas=[type(delta)(**{**fields, "channel": channel, "call": call})]))

    send((Channel.CALL_NAME, 0, "f", 0), (Channel.CALL_ARGUMENTS, 0, '{"a"', 1))
    send((Channel.CALL_NAME, 0, "f", 0), (Channel.CALL_ARGUMENTS, 0, '{"a": 1', 1), (Channel.CALL_ARGUMENTS, 0, "}", 8))
    send((Channel.CALL_NAME, 1, "g", 9), (Channel.CALL_NAME, 1, "g", 9), (Channel.CALL_ARGUMENTS, 1, "{}", 10))
    backend.finish(request)
    calls = (await task).choices[0].message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [("f", '{"a": 1}'), ("g", "{}")]


async def test_a_refusal_names_the_field(gateway: Any, backend: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, tools=[*TOOLS, *TOOLS])
    assert refused.value.param == "tools[1].function.name"


async def test_the_ids_of_calls_and_their_results_come_back_to_the_model(gateway: Any, backend: Any) -> None:
    serving = serve(backend, CALLS)
    client = gateway.openai()
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    await serving
    message = answer.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    serving = serve(backend, content("It is sunny."))
    await client.chat.completions.create(model="tiny", messages=[*MESSAGES, message, *results], tools=TOOLS)
    request = await serving
    _, assistant, first, second = request.prompt.messages
    assert assistant["content"] == ""
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == [
        {"city": "Zürich", "days": 2},
        {"city": "Oslo", "days": 1},
    ]
    assert [first["tool_call_id"], second["tool_call_id"]] == [call["id"] for call in assistant["tool_calls"]]


async def test_parse_with_a_pydantic_model(gateway: Any, backend: Any) -> None:
    serving = serve(backend, content('{"steps": ["a"], ', '"result": 3}'))
    parsed = await gateway.openai().chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Answer)
    assert parsed.choices[0].message.parsed == Answer(steps=["a"], result=3)
    request = await serving
    assert (request.constraint.kind, request.constraint.param) == (
        "json_schema",
        "response_format.json_schema.schema",
    )
    assert list(json.loads(request.constraint.source)["properties"]) == ["steps", "result"]


async def test_the_stream_helper_with_a_pydantic_model(gateway: Any, backend: Any) -> None:
    serve(backend, content('{"steps": ["a"], ', '"result": 3}'))
    partial = []
    async with gateway.openai().chat.completions.stream(
        model="tiny", messages=MESSAGES, response_format=Answer
    ) as stream:
        async for event in stream:
            if event.type == "content.delta":
                partial.append(event.parsed)
        final = await stream.get_final_completion()
    assert {"steps": ["a"]} in partial
    assert final.choices[0].message.parsed == Answer(steps=["a"], result=3)


@pytest.mark.parametrize("pieces", [CALLS, content('{"steps": [], "result": 1}')])
async def test_tools_and_a_pydantic_model_at_once(gateway: Any, backend: Any, pieces: Any) -> None:
    serving = serve(backend, pieces)
    parsed = await gateway.openai().chat.completions.parse(
        model="tiny", messages=MESSAGES, tools=TOOLS, response_format=Answer
    )
    request = await serving
    assert request.constraint is not None
    assert request.tool_calling is not None
    message = parsed.choices[0].message
    assert (message.parsed is None) == bool(message.tool_calls)


async def test_grammar_mode_off_refuses_calls_that_must_be_made(start: Any, backend: Any) -> None:
    gateway = await start(grammar_mode="off")
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.openai().chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required"
        )
    assert refused.value.param == "tool_choice"
