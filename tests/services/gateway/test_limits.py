"""Overload and deadlines: what is refused, for how long, and what a slow reader may cost."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.load import LONGEST_WAIT_S, Load
from shared.errors import Overloaded

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
URL = "/v1/chat/completions"


def busy(max_requests: int, ends_per_second: float, seconds: float) -> tuple[Load, float]:
    """A gateway that has been full for a while, at a steady pace."""
    load = Load(max_requests, 0)
    now = 1000.0
    for _ in range(max_requests):
        load.enter(now)
    for _ in range(int(seconds * ends_per_second)):
        now += 1 / ends_per_second
        load.leave(now)
        load.enter(now)
    return load, now


@pytest.mark.parametrize("pace", [0.5, 5.0, 50.0])
def test_those_turned_away_are_told_to_come_back_at_the_pace_of_completions(pace: float) -> None:
    load, now = busy(10, pace, 60)
    waits = []
    for _ in range(20):
        with pytest.raises(Overloaded) as refused:
            load.enter(now)
        waits.append(refused.value.retry_after_s or 0)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(min(LONGEST_WAIT_S, max(1.0, 20 / pace)), rel=0.15)


def test_who_comes_long_after_the_others_need_not_wait_for_them() -> None:
    load, now = busy(10, 10, 60)
    for _ in range(100):
        load.retry_after_s(now)
    assert load.retry_after_s(now) > 8
    assert load.retry_after_s(now + 30) <= 1.5


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100), st.integers(0, 10**7))))
def test_the_books_balance(steps: list[tuple[int, float, int]]) -> None:
    load = Load(3, 1000)
    now = 0.0
    prompts: list[int] = []
    waits: list[float] = []
    for kind, passed, tokens in steps:
        now += passed
        try:
            if kind == 0:
                load.enter(now)
            elif kind == 1 and load.requests:
                load.leave(now)
            elif kind == 2:
                load.add_prompt(tokens, now)
                prompts.append(tokens)
            elif prompts:
                load.remove_prompt(prompts.pop())
        except Overloaded as error:
            waits.append(error.retry_after_s or 0)
        assert all(1 <= wait <= LONGEST_WAIT_S for wait in waits)
        assert 0 <= load.requests <= 3
        assert load.prompt_tokens == sum(prompts)
        assert load.prompt_tokens <= 1000 or len([tokens for tokens in prompts if tokens]) == 1


async def test_more_prompt_tokens_than_room_are_a_429(start: Any, backend: Any) -> None:
    gateway = await start(max_prompt_tokens_in_flight=100)
    first = asyncio.create_task(gateway.post("/v1/completions", {"model": "tiny", "prompt": [1] * 90}))
    request = await backend.next()
    status, answer, response = await gateway.post("/v1/completions", {"model": "tiny", "prompt": "a" * 80})
    assert (status, answer["error"]["code"], response.headers["Retry-After"]) == (429, "overloaded", "1")
    backend.answer(request, ["x"])
    assert (await first)[0] == 200
    backend.texts = ["x"]
    for _ in range(3):  # alone, one of any size has room
        assert (await gateway.post("/v1/completions", {"model": "tiny", "prompt": [1] * 500}))[0] == 200
    async with gateway.http.get("/metrics") as metrics:
        text = await metrics.text()
    assert "sapwood_prompt_tokens_in_flight 0.0" in text
    assert 'sapwood_requests_turned_away_total{why="prompt_tokens"}' in text


@pytest.mark.parametrize("how", ["field", "header", "both", "server"])
@pytest.mark.parametrize("is_kept", [False, True])
async def test_the_deadline_travels_and_is_kept(start: Any, backend: Any, how: str, is_kept: bool) -> None:
    gateway = await start(request_timeout_s=0.4 if how == "server" else 100.0)
    body = {**CHAT, "resumable": is_kept, **({"timeout": 0.4 if how == "field" else 50} if how != "header" else {})}
    headers = {"X-Request-Timeout": "0.4"} if how in ("header", "both") else {}
    begun = time.time()
    call = asyncio.create_task(gateway.post(URL, body, headers=headers))
    delivery = await backend.next_delivery()
    assert begun + 0.4 <= delivery.deadline < time.time() + 0.4
    status, answer, _ = await call
    assert (status, answer["error"]["code"]) == (504, "timeout")
    assert 0.4 < time.time() - begun < 10
    await backend.next_abort()


async def test_a_stream_that_takes_too_long_ends_with_an_error(gateway: Any, backend: Any) -> None:
    async with asyncio.timeout(5):
        call = asyncio.create_task(gateway.http.post(URL, json={**CHAT, "stream": True, "timeout": 0.5}))
        backend.delta(await backend.next(), "x")
        text = await (await call).text()
    assert '"code":"timeout"' in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "nan", "inf", "1e400", "1,2"])
async def test_a_bad_timeout_header_is_a_400(gateway: Any, value: str) -> None:
    status, answer, _ = await gateway.post(URL, CHAT, headers={"X-Request-Timeout": value})
    assert (status, answer["error"]["param"]) == (400, "X-Request-Timeout")


@pytest.mark.parametrize("value", [0, -1, "1", 1e10])
async def test_a_bad_timeout_field_is_a_400(gateway: Any, value: object) -> None:
    status, answer, _ = await gateway.post(URL, {**CHAT, "timeout": value})
    assert (status, answer["error"]["param"]) == (400, "timeout")
