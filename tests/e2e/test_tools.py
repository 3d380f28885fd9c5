"""Tool calls of the default model, whose chat template knows nothing of tools, over the API as clients use it."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.model

MODEL = "SmolLM2-135M-Instruct"
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris today?"}]


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Oslo", "Rome"]
    days: Literal[1, 2, 3]


class Close(BaseModel):
    """Closes the conversation."""

    reason: Literal["done", "bored"]


TOOLS: list[Any] = [
    openai.pydantic_function_tool(GetWeather, name="get_weather"),
    openai.pydantic_function_tool(Close, name="close"),
]


@pytest.fixture
def client(sapwood: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{sapwood.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def calls_of(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


@pytest.mark.parametrize("seed", range(2))
def test_a_call_that_must_be_made_is_made(client: openai.OpenAI, seed: int) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed,
        temperature=1, max_tokens=100,
    )  # fmt: skip
    (choice,) = parsed.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather if call.function.name == "get_weather" else Close)


def test_the_named_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, max_tokens=100,
        tool_choice={"type": "function", "function": {"name": "close"}},
    )  # fmt: skip
    ((name, arguments),) = calls_of(answer.choices[0].message)
    assert name == "close"
    assert Close.model_validate_json(arguments)


def test_streamed_calls_are_the_plain_ones(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "temperature": 0,
        "max_tokens": 60,
    }  # fmt: skip
    try:
        plain = client.chat.completions.create(**asked)
        with client.chat.completions.stream(**asked) as stream:
            fragments = "".join(
                event.arguments_delta
                for event in stream
                if event.type == "tool_calls.function.arguments.delta" and event.index == 0
            )
            streamed = stream.current_completion_snapshot
    except openai.LengthFinishReasonError as error:
        streamed = error.completion  # the model went on calling
        fragments = calls_of(streamed.choices[0].message)[0][1]
    assert calls_of(streamed.choices[0].message) == calls_of(plain.choices[0].message)
    assert fragments == calls_of(plain.choices[0].message)[0][1]


def a_round(city: str, number: int) -> list[Any]:
    """A question and the call that it led to."""
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps({"city": city, "days": number})},
    }
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]


def test_strict_tools_are_never_called_badly(client: openai.OpenAI) -> None:
    """Of its own accord so small a model calls only what it has seen called."""
    models = {"get_weather": GetWeather, "close": Close}
    messages = [*a_round("Oslo", 1), *a_round("Rome", 2), {"role": "user", "content": "What is the weather in Paris?"}]
    num_calls = 0
    for seed in range(3):
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, tools=TOOLS, seed=seed, temperature=0.7, max_tokens=60
        )
        (choice,) = answer.choices
        for name, arguments in calls_of(choice.message):
            models[name].model_validate_json(arguments)
            num_calls += 1
    assert num_calls, "the model called nothing, so this says nothing"


def test_a_conversation_with_results(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=100
    )
    message = first.choices[0].message
    (call,) = message.tool_calls or []
    messages = [*QUESTION, message, {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "blue"})}]
    second = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=20
    )
    assert second.choices[0].message.content
    assert second.choices[0].message.tool_calls is None


def test_what_cannot_be_served_names_its_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[*TOOLS, TOOLS[0]])
    assert refused.value.param == "tools[2].function.name"
