"""The completion endpoints as the `openai` client sees them, plain and streamed."""

import asyncio
from typing import Any

import pytest

from shared.errors import InvalidRequest, Unavailable
from shared.messages import ChatPrompt, Deltas, FinishReason, SamplingOptions, TextPrompt, TokenPrompt, sequence_id
from shared.packing import pack_i32

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": MESSAGES}


async def test_a_chat(gateway: Any, backend: Any) -> None:
    backend.texts = ["Hel", "lo", " wörld"]
    backend.stop_reason = "END"
    answer = await gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, seed=3)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "Hello wörld")
    assert choice.finish_reason == "stop"
    assert choice.model_extra == {"stop_reason": "END"}
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    (request,) = backend.seen
    assert request.reply_to.startswith("g1.")
    assert request.prompt == ChatPrompt(messages=MESSAGES)
    assert request.sampling == SamplingOptions(temperature=0, seed=3)


async def test_a_streamed_chat(gateway: Any, backend: Any) -> None:
    backend.texts = ["Hel", "lo"]
    stream = await gateway.openai().chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    first, last = chunks[0], chunks[-1]
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    said = [chunk.choices[0] for chunk in chunks[1:-1]]
    assert "".join(choice.delta.content for choice in said) == "Hello"
    assert [choice.finish_reason for choice in said] == [None] * (len(said) - 1) + ["stop"]
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 2)
    assert last.usage.prompt_tokens_details.cached_tokens == 4


async def test_each_delta_is_an_event_of_its_own_as_it_comes(gateway: Any, backend: Any) -> None:
    stream = asyncio.create_task(gateway.openai().completions.create(model="tiny", prompt="a", stream=True))
    request = await backend.next()
    backend.delta(request, "one")
    chunks = (await stream).__aiter__()
    assert (await chunks.__anext__()).choices[0].text == "one"
    backend.delta(request, " two", offset=3, num_tokens=2)
    assert (await chunks.__anext__()).choices[0].text == " two"
    backend.finish(request, reason=FinishReason.LENGTH, num_tokens=2)
    chunk = await chunks.__anext__()
    assert (chunk.choices[0].text, chunk.choices[0].finish_reason, chunk.usage) == ("", "length", None)
    with pytest.raises(StopAsyncIteration):
        await chunks.__anext__()


async def test_a_completion(gateway: Any, backend: Any) -> None:
    backend.texts = ["x", "y"]
    answer = await gateway.openai().completions.create(model="tiny", prompt="a")
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "xy"
    assert answer.choices[0].model_extra == {"stop_reason": None}
    assert backend.seen[0].max_tokens == 16


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_several_choices(gateway: Any, backend: Any, is_streamed: bool) -> None:
    task = asyncio.create_task(gateway.events("/v1/chat/completions", {**CHAT, "n": 2, "stream": True})) if (
        is_streamed
    ) else asyncio.create_task(gateway.post("/v1/chat/completions", {**CHAT, "n": 2}))  # fmt: skip
    request = await backend.next()
    assert request.n == 2
    backend.delta(request, "B", choice=1)
    backend.delta(request, "A", choice=0)
    backend.finish(request, choice=1)
    backend.finish(request, choice=0, reason=FinishReason.LENGTH)
    if is_streamed:
        texts, ends, roles = {0: "", 1: ""}, {}, []
        for event in await task:
            (choice,) = event["choices"]
            texts[choice["index"]] += choice["delta"]["content"]
            if "role" in choice["delta"]:
                roles.append(choice["index"])
            if choice["finish_reason"]:
                ends[choice["index"]] = choice["finish_reason"]
        assert sorted(roles) == [0, 1]
    else:
        status, answer, _ = await task
        assert status == 200
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        texts = {choice["index"]: choice["message"]["content"] for choice in answer["choices"]}
        ends = {choice["index"]: choice["finish_reason"] for choice in answer["choices"]}
        assert answer["usage"]["prompt_tokens"] == 7
        assert answer["usage"]["completion_tokens"] == 2
    assert texts == {0: "A", 1: "B"}
    assert ends == {0: "length", 1: "stop"}


async def test_a_list_of_prompts_is_one_message_each(gateway: Any, backend: Any) -> None:
    call = asyncio.create_task(gateway.openai().completions.create(model="tiny", prompt=["a", "b"], n=2))
    requests = [await backend.next(), await backend.next()]
    assert [request.prompt for request in requests] == [TextPrompt(text="a"), TextPrompt(text="b")]
    assert requests[0].request_id != requests[1].request_id
    assert requests[0].sampling.seed != requests[1].sampling.seed
    for place, request in enumerate(requests):
        for choice in range(2):
            backend.delta(request, f"{place}{choice}", choice=choice)
            backend.finish(request, choice=choice, cached_tokens=2 + choice)
    answer = await call
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "00"), (1, "01"), (2, "10"), (3, "11")]
    assert answer.usage.prompt_tokens == 14
    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize(
    ("prompt", "expected"), [([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])], ids=["ids", "lists"]
)
async def test_token_prompts(gateway: Any, backend: Any, prompt: list[Any], expected: list[list[int]]) -> None:
    backend.texts = ["x"]
    answer = await gateway.openai().completions.create(model="tiny", prompt=prompt)
    assert len(answer.choices) == len(expected)
    assert [request.prompt for request in backend.seen] == [TokenPrompt(token_ids=pack_i32(ids)) for ids in expected]


async def test_usage_in_every_chunk(gateway: Any, backend: Any) -> None:
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    call = asyncio.create_task(gateway.events("/v1/chat/completions", {**CHAT, **options}))
    request = await backend.next()
    backend.delta(request, "a")
    await backend.bus.outbox.flush()
    await asyncio.sleep(0.05)
    backend.delta(request, "b", offset=1, num_tokens=2)
    backend.finish(request, num_tokens=2)
    events = await call
    assert all("usage" in event for event in events)
    assert [event["usage"]["completion_tokens"] for event in events] == sorted(
        event["usage"]["completion_tokens"] for event in events
    )
    assert events[1]["usage"]["completion_tokens"] == 1
    assert {event["usage"]["prompt_tokens"] for event in events} == {7}
    assert events[-1]["choices"] == []


async def test_text_that_looks_like_framing_arrives_as_it_was(gateway: Any, backend: Any) -> None:
    text = 'a\n\ndata: [DONE]\n\n"\\\u2028\u2029\x85\x00\U0001f600'
    backend.texts = [text]
    stream = await gateway.openai().completions.create(model="tiny", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == text
    async with gateway.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True}) as response:
        lines = (await response.text()).splitlines()  # as several clients split
    assert all(not line or line.startswith("data: ") for line in lines)


async def test_replies_that_come_twice_are_told_once(gateway: Any, backend: Any) -> None:
    call = asyncio.create_task(gateway.events("/v1/completions", {"model": "tiny", "prompt": "a", "stream": True}))
    request = await backend.next()
    for _ in range(2):
        backend.delta(request, "one")
        backend.delta(request, " two", offset=3, num_tokens=2)
    for _ in range(2):
        backend.finish(request, num_tokens=2)
    events = await call
    assert "".join(event["choices"][0]["text"] for event in events) == "one two"
    assert [event["choices"][0]["finish_reason"] for event in events].count("stop") == 1


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_rejection_has_its_status(gateway: Any, backend: Any, is_streamed: bool) -> None:
    call = asyncio.create_task(gateway.post("/v1/chat/completions", {**CHAT, "stream": is_streamed}))
    backend.reject(await backend.next(), InvalidRequest("too long", param="messages", code="context_length").body())
    status, answer, response = await call
    assert status == 400
    assert response.content_type == "application/json"
    assert answer == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length",
        }
    }
    await asyncio.sleep(0.05)
    assert backend.num_aborts == 0, "what was rejected is not aborted"


async def test_an_error_before_the_first_text_has_its_status(gateway: Any, backend: Any) -> None:
    call = asyncio.create_task(gateway.post("/v1/chat/completions", {**CHAT, "stream": True}))
    error = Unavailable("no pages", retry_after_s=2.5).body()
    backend.finish(await backend.next(), reason=FinishReason.ERROR, error=error)
    status, answer, response = await call
    assert (status, response.headers["Retry-After"], answer["error"]["message"]) == (503, "3", "no pages")


async def test_one_rejected_prompt_ends_the_request_and_aborts_the_others(gateway: Any, backend: Any) -> None:
    call = asyncio.create_task(gateway.post("/v1/completions", {"model": "tiny", "prompt": ["a", "b"]}))
    first, second = await backend.next(), await backend.next()
    backend.reject(second, InvalidRequest("no", param="prompt").body())
    assert (await call)[0] == 400
    assert (await backend.next_abort()).sequence_ids == [sequence_id(first.request_id, 0)]


async def test_an_error_in_a_stream_is_its_last_event(gateway: Any, backend: Any) -> None:
    call = asyncio.create_task(gateway.events("/v1/chat/completions", {**CHAT, "stream": True}))
    request = await backend.next()
    backend.delta(request, "some")
    await backend.bus.outbox.flush()
    await asyncio.sleep(0.05)
    backend.finish(request, reason=FinishReason.ERROR, error=Unavailable("gone").body())
    events = await call
    assert events[1]["choices"][0]["delta"]["content"] == "some"
    assert events[-1] == {"error": {"message": "gone", "type": "server_error", "param": None, "code": "unavailable"}}


async def test_a_request_whose_time_is_up_ends_with_504(start: Any, backend: Any) -> None:
    gateway = await start(request_timeout_s=0.3)
    call = asyncio.create_task(gateway.post("/v1/chat/completions", CHAT))
    delivery = await backend.next_delivery()
    assert delivery.deadline == pytest.approx(delivery.message.arrival + 0.3)
    status, answer, _ = await call
    assert (status, answer["error"]["code"]) == (504, "timeout")
    assert (await backend.next_abort()).sequence_ids == [sequence_id(delivery.message.request_id, 0)]


async def test_many_at_once_get_each_their_own(gateway: Any, backend: Any) -> None:
    async def one(place: int) -> None:
        events = await gateway.events("/v1/completions", {"model": "tiny", "prompt": f"p{place}", "stream": True})
        assert "".join(event["choices"][0]["text"] for event in events) == f"p{place} is p{place}!"

    calls = asyncio.gather(*(one(place) for place in range(50)))
    requests = [await backend.next() for _ in range(50)]
    for number, pieces in enumerate((lambda p: p, lambda p: " is ", lambda p: p, lambda p: "!")):
        deltas = []
        for request in requests:
            sent = "".join(piece(request.prompt.text) for piece in PIECES[:number])
            deltas.append(backend.a_delta(request, pieces(request.prompt.text), 0, len(sent), number + 1))
        backend.send(requests[0], Deltas(deltas=deltas))
    backend.send(requests[0], Deltas(finished=[backend.an_end(request, 0, num_tokens=4) for request in requests]))
    await calls


PIECES = (lambda p: p, lambda p: " is ", lambda p: p)
