"""Clients that come back: to the same gateway, to another, after a kill; each piece of an answer once."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from shared.errors import InvalidRequest, Unavailable
from shared.messages import sequence_id
from shared.streams import Bus
from tests.ports import free_port
from tests.services.gateway.sse import Event, said_of, split, text_of

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
URL = "/v1/chat/completions"
KEY = {"Idempotency-Key": "k-1"}
PIECES = ["one ", "two ", "drei ", "vier ", "fünf"]


async def read_until(response: aiohttp.ClientResponse, text: str) -> list[Event]:
    """The events up to the one that ends with the text."""
    async with asyncio.timeout(5):
        said = b""
        while True:
            piece = await response.content.readany()
            assert piece, f"the stream ended after {said!r}"
            said += piece
            if said.endswith(b"\n\n") and text_of(split(said)).endswith(text):
                return split(said)


async def rest_of(response: aiohttp.ClientResponse) -> list[Event]:
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    return split(await asyncio.wait_for(response.read(), 5))


def say(backend: Any, request: Any, start: int, stop: int, *, is_end: bool = False) -> None:
    for place in range(start, stop):
        backend.delta(request, PIECES[place], offset=len("".join(PIECES[:place])), num_tokens=place + 1)
    if is_end:
        backend.finish(request, num_tokens=stop)


def check_whole(events: list[Event]) -> None:
    said = said_of(events)
    assert said[0, "content"] == "".join(PIECES)
    assert (said[0, "role"], said[0, "finish"]) == ("assistant", "stop")
    assert (said["done"], said["errors"]) == (1, [])


async def keys_of(bus: Bus, pattern: str) -> list[bytes]:
    return sorted(await bus.client.keys(bus.key(pattern)))


async def until(holds: Callable[[], Awaitable[bool]], patience_s: float = 10) -> None:
    deadline = time.monotonic() + patience_s
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_streams_have_ids_if_their_clients_may_come_back(gateway: Any, backend: Any, bus: Bus) -> None:
    backend.texts = PIECES
    for body, headers, has_ids in ((STREAM, {}, False), (STREAM, KEY, True), ({**STREAM, "resumable": True}, {}, True)):
        async with gateway.http.post(URL, json=body, headers=headers) as response:
            events = await rest_of(response)
        check_whole(events)
        assert all(bool(event.id) == has_ids for event in events[:-1])
    assert len(await keys_of(bus, "answer:*")) == 2
    assert len(await keys_of(bus, "idempotency:*")) == 1
    for key in [*await keys_of(bus, "answer:*"), *await keys_of(bus, "idempotency:*")]:
        assert 500 < await bus.client.ttl(key) <= 600


@pytest.mark.parametrize("how", ["get", "post", "key"])
@pytest.mark.parametrize("is_same_gateway", [True, False])
async def test_the_rest_of_a_stream_that_is_being_made(
    start: Any, backend: Any, bus: Bus, how: str, is_same_gateway: bool
) -> None:
    first = await start()
    other = first if is_same_gateway else await start(instance="g2")
    body = STREAM if how == "key" else {**STREAM, "resumable": True}
    asked = asyncio.create_task(first.http.post(URL, json=body, headers=KEY if how == "key" else {}))
    request = await backend.next()
    say(backend, request, 0, 2)
    response = await asked
    had = await read_until(response, PIECES[1])
    response.close()
    say(backend, request, 2, 3)
    after = {"Last-Event-ID": had[-1].id}
    if how == "get":
        again = await other.http.get(f"/v1/streams/{request.request_id}", headers=after)
    else:
        again = await other.http.post(URL, json=body, headers={**after, **(KEY if how == "key" else {})})
    more = await read_until(again, PIECES[2])
    say(backend, request, 3, 5, is_end=True)
    check_whole([*had, *more, *await rest_of(again)])
    assert len(backend.seen) == 1
    assert backend.num_aborts == 0


@pytest.mark.parametrize("how", ["get", "post", "key"])
async def test_an_answer_does_not_lapse_under_who_comes_for_it_late(
    start: Any, backend: Any, bus: Bus, how: str
) -> None:
    """What is left of the grace is less than the time to the reader's first renewal."""
    first, other = await start(resume_grace_s=60.0), await start(instance="g2", resume_grace_s=60.0)
    asked = asyncio.create_task(first.http.post(URL, json=STREAM, headers=KEY))
    request = await backend.next()
    say(backend, request, 0, 2)
    response = await asked
    had = await read_until(response, PIECES[1])
    response.close()
    names = [*await keys_of(bus, "answer:*"), *await keys_of(bus, "idempotency:*")]
    assert len(names) == 2
    for name in names:
        await bus.client.pexpire(name, 3000)
    after = {"Last-Event-ID": had[-1].id}
    if how == "get":
        again = await other.http.get(f"/v1/streams/{request.request_id}", headers=after)
    else:
        again = await other.http.post(URL, json=STREAM, headers={**KEY, **(after if how == "post" else {})})
    assert again.status == 200
    for name in names:
        assert 50_000 < await bus.client.pttl(name) <= 60_000
    say(backend, request, 2, 5, is_end=True)
    check_whole([*(had if how != "key" else []), *await rest_of(again)])


async def test_coming_for_an_answer_never_shortens_its_time(start: Any, backend: Any, bus: Bus) -> None:
    backend.texts = PIECES
    gateway = await start(resume_grace_s=1.0)
    _, answer, _ = await gateway.post(URL, CHAT, headers=KEY)
    assert (await gateway.post(URL, CHAT, headers=KEY))[0] == 200
    async with gateway.http.get(f"/v1/streams/{answer['id']}") as response:
        assert response.status == 200
    for name in [*await keys_of(bus, "answer:*"), *await keys_of(bus, "idempotency:*")]:
        assert 500 < await bus.client.ttl(name) <= 600


async def test_an_answer_once_however_often_it_is_asked_for(start: Any, backend: Any) -> None:
    first, second = await start(), await start(instance="g2")
    calls = [asyncio.create_task(gateway.post(URL, CHAT, headers=KEY)) for gateway in (first, second) for _ in range(4)]
    request = await backend.next()
    say(backend, request, 0, 2)
    await asyncio.sleep(0.2)
    calls.append(asyncio.create_task(second.post(URL, CHAT, headers=KEY)))
    await asyncio.sleep(0.2)
    say(backend, request, 2, 5, is_end=True)
    answers = [await call for call in calls]
    answers += [await gateway.post(URL, CHAT, headers=KEY) for gateway in (first, second)]  # it is over
    assert len({response.headers["x-request-id"] for _, _, response in answers}) == len(answers)
    assert all(status == 200 for status, _, _ in answers)
    assert all(answer == answers[0][1] for _, answer, _ in answers)
    assert answers[0][1]["choices"][0]["message"]["content"] == "".join(PIECES)
    assert len(backend.seen) == 1


async def test_a_key_stands_for_one_request(gateway: Any, backend: Any) -> None:
    backend.texts = PIECES
    assert (await gateway.post(URL, CHAT, headers=KEY))[0] == 200
    status, answer, _ = await gateway.post(URL, {**CHAT, "seed": 1}, headers=KEY)
    assert (status, answer["error"]["code"]) == (422, "idempotency_key_reused")
    body = {"model": "tiny", "prompt": "a"}
    assert (await gateway.post("/v1/completions", body, headers=KEY))[0] == 422
    assert (await gateway.post("/v1/completions", body, headers={"Idempotency-Key": "k-2"}))[0] == 200
    assert len(backend.seen) == 2


async def test_an_answer_that_nobody_comes_back_for_is_cancelled(start: Any, backend: Any, bus: Bus) -> None:
    gateway = await start(resume_grace_s=1.0)
    asked = asyncio.create_task(gateway.http.post(URL, json=STREAM, headers=KEY))
    request = await backend.next()
    say(backend, request, 0, 1)
    response = await asked
    had = await read_until(response, PIECES[0])
    await asyncio.sleep(2)  # its client is there: it goes on
    assert backend.num_aborts == 0
    left = time.monotonic()
    response.close()
    assert (await backend.next_abort()).sequence_ids == [sequence_id(request.request_id, 0)]
    assert 0.3 < time.monotonic() - left < 3
    assert await keys_of(bus, "answer:*") == await keys_of(bus, "idempotency:*") == []
    async with gateway.http.get("/metrics") as metrics:
        assert "sapwood_requests_in_flight 0.0" in await metrics.text()
    async with gateway.http.post(URL, json=STREAM, headers={**KEY, "Last-Event-ID": had[-1].id}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "stream_not_found"
    backend.texts = PIECES
    assert (await gateway.post(URL, CHAT, headers=KEY))[0] == 200  # the key is free again


async def test_an_answer_that_is_deleted_is_cancelled(gateway: Any, backend: Any, bus: Bus) -> None:
    call = asyncio.create_task(gateway.post(URL, CHAT, headers=KEY))
    request = await backend.next()
    async with gateway.http.delete(f"/v1/streams/{request.request_id}") as response:
        assert response.status == 200
    assert (await backend.next_abort()).sequence_ids == [sequence_id(request.request_id, 0)]
    call.cancel()
    async with gateway.http.delete(f"/v1/streams/{request.request_id}") as response:
        assert response.status == 404


async def test_refusals_are_kept_and_failures_are_not(gateway: Any, backend: Any) -> None:
    for error, is_kept in ((InvalidRequest("Too long.", param="messages"), True), (Unavailable("Come back."), False)):
        headers = {"Idempotency-Key": f"k-{is_kept}"}
        call = asyncio.create_task(gateway.post(URL, CHAT, headers=headers))
        backend.reject(await backend.next(), error.body())
        assert (await call)[0] == error.status
        if is_kept:
            assert (await gateway.post(URL, CHAT, headers=headers))[0] == error.status
        else:
            call = asyncio.create_task(gateway.post(URL, CHAT, headers=headers))
            backend.answer(await backend.next(), PIECES)
            assert (await call)[0] == 200
    assert len(backend.seen) == 3


async def test_answers_are_their_owners(start: Any, backend: Any, bus: Bus) -> None:
    backend.texts = PIECES
    gateway = await start(api_key="a")
    other = await start(instance="g2")
    auth = {"Authorization": "Bearer a"}
    status, answer, _ = await gateway.post(URL, CHAT, headers={**KEY, **auth})
    assert status == 200
    async with gateway.http.get(f"/v1/streams/{answer['id']}", headers=auth) as response:
        assert await response.json() == answer
    async with other.http.get(f"/v1/streams/{answer['id']}") as response:
        assert response.status == 404
    assert (await other.post(URL, CHAT, headers=KEY))[0] == 200
    assert len(backend.seen) == 2  # the same key of another owner is another key


@pytest.mark.parametrize("last", ["x", "chatcmpl-" + "0" * 32 + ":1", "chatcmpl-" + "0" * 32 + ":1,1"])
async def test_events_of_no_answer(gateway: Any, backend: Any, last: str) -> None:
    backend.texts = PIECES
    async with gateway.http.post(URL, json=STREAM, headers={"Last-Event-ID": last}) as response:
        assert response.status == (400 if last == "x" else 404)
    _, answer, _ = await gateway.post(URL, CHAT, headers=KEY)
    async with gateway.http.get(f"/v1/streams/{answer['id']}", headers={"Last-Event-ID": last}) as response:
        assert response.status == 400
    async with gateway.http.post(URL, json=STREAM, headers={"Idempotency-Key": "s"}) as response:
        ids = [event.id for event in await rest_of(response) if event.id]
    wrong = ids[-1].replace(":", ":0,")
    async with gateway.http.post(URL, json=STREAM, headers={"Last-Event-ID": wrong}) as response:
        assert response.status == 400


async def test_many_choices_are_told_without_ids(gateway: Any, backend: Any) -> None:
    backend.texts = PIECES
    body = {**STREAM, "n": 17}
    for _ in range(2):  # the key works all the same
        async with gateway.http.post(URL, json=body, headers=KEY) as response:
            events = await rest_of(response)
        assert not any(event.id for event in events)
        assert all(said_of(events)[choice, "content"] == "".join(PIECES) for choice in range(17))
    assert len(backend.seen) == 1


async def test_a_stop_leaves_streams_to_other_gateways(
    start: Any, backend: Any, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await start(drain_timeout_s=0.2), await start(instance="g2")
    asked = asyncio.create_task(first.http.post(URL, json=STREAM, headers=KEY))
    plain = asyncio.create_task(first.post(URL, CHAT, headers={"Idempotency-Key": "plain"}))
    requests = [await backend.next(), await backend.next()]
    requests.sort(key=lambda request: request.arrival)
    say(backend, requests[0], 0, 2)
    response = await asked
    had = await read_until(response, PIECES[1])
    await asyncio.wait_for(first.stop(), 5)
    with pytest.raises(aiohttp.ClientPayloadError):  # no end: the client knows that there is more
        await response.read()
    status, _, refused = await plain
    assert (status, refused.headers["Retry-After"]) == (503, "1")
    assert backend.num_aborts == 0
    for request in requests:
        say(backend, request, 2 if request is requests[0] else 0, 5, is_end=True)
    again = await second.http.post(URL, json=STREAM, headers={**KEY, "Last-Event-ID": had[-1].id})
    check_whole([*had, *await rest_of(again)])
    status, answer, _ = await second.post(URL, CHAT, headers={"Idempotency-Key": "plain"})
    assert answer["choices"][0]["message"]["content"] == "".join(PIECES)
    assert len(backend.seen) == 2
    for key in await keys_of(bus, "*:g1*"):
        assert await bus.client.ttl(key) > 0
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")], "a cut is no failure"


class Process:
    """A gateway in a process of its own, which can be killed."""

    def __init__(self, broker_url: str, bus: Bus, *flags: str) -> None:
        self.port = free_port()
        self._command = [
            *(sys.executable, "-m", "services.gateway", f"--redis-url={broker_url}", f"--key-prefix={bus.prefix}"),
            *(f"--port={self.port}", "--instance=killed", *flags),
        ]

    async def __aenter__(self) -> "Process":
        self._process = await asyncio.create_subprocess_exec(*self._command)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.kill()
        await self._process.wait()

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)

    async def is_there(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get("/v1/models") as response:
                return "tiny" in await response.text()
        except aiohttp.ClientConnectionError:
            return False


async def test_a_crowd_comes_back_after_a_kill(start: Any, backend: Any, bus: Bus, broker_url: str) -> None:
    """Nobody misses anything, and whoever had asked for all at once gets all, from one run of the model."""
    crowd = 60
    survivor = await start()
    async with Process(broker_url, bus) as killed, aiohttp.ClientSession(f"http://127.0.0.1:{killed.port}") as http:
        await until(lambda: killed.is_there(http))
        asked = [
            asyncio.create_task(http.post(URL, json=STREAM, headers={"Idempotency-Key": f"s{number}"}))
            for number in range(crowd)
        ]
        plain = asyncio.create_task(http.post(URL, json=CHAT, headers={"Idempotency-Key": "plain"}))
        requests = [await backend.next() for _ in range(crowd + 1)]
        for place, request in enumerate(requests):
            say(backend, request, 0, 1 + place % 3)
        responses = [await response for response in asked]
        had = [await read_until(response, "") for response in responses]
        killed.kill()
        for response in responses:
            response.close()
        with pytest.raises(aiohttp.ClientError):
            await plain
    for place, request in enumerate(requests):
        say(backend, request, 1 + place % 3, 5, is_end=place % 2 == 0)
    again = [
        asyncio.create_task(
            survivor.http.post(URL, json=STREAM, headers={"Idempotency-Key": f"s{n}", "Last-Event-ID": had[n][-1].id})
        )
        for n in range(crowd)
    ]
    plain = asyncio.create_task(survivor.post(URL, CHAT, headers={"Idempotency-Key": "plain"}))
    await asyncio.sleep(0.5)
    for place, request in enumerate(requests):
        if place % 2:
            backend.finish(request, num_tokens=5)
    for before, response in zip(had, again, strict=True):
        check_whole([*before, *await rest_of(await response)])
    assert (await plain)[1]["choices"][0]["message"]["content"] == "".join(PIECES)
    assert len(backend.seen) == crowd + 1
    assert backend.num_aborts == 0
    assert len(await keys_of(bus, "answer:*")) == crowd + 1
    for key in await keys_of(bus, "*"):
        if b"tokenize" not in key and b"schedule" not in key and b"instances" not in key:
            assert await bus.client.ttl(key) > 0, key


async def test_kept_answers_have_a_limit_in_all(start: Any, backend: Any, bus: Bus) -> None:
    backend.texts = ["x" * 200_000]
    gateway = await start(resume_max_mb=1)
    for number in range(12):
        assert (await gateway.post(URL, CHAT, headers={"Idempotency-Key": f"{number}"}))[0] == 200
    await bus.outbox.flush()
    assert 3 <= len(await keys_of(bus, "answer:*")) <= 5
    assert len(await keys_of(bus, "answer:*")) == len(await keys_of(bus, "idempotency:*"))


async def test_readers_elsewhere_end_when_the_broker_lost_its_data(start: Any, backend: Any, bus: Bus) -> None:
    first, second = await start(), await start(instance="g2")
    calls = [asyncio.create_task(first.post(URL, CHAT, headers=KEY))]
    await backend.next()
    calls.append(asyncio.create_task(second.post(URL, CHAT, headers=KEY)))
    await asyncio.sleep(0.3)
    for key in await bus.client.keys(bus.key("*")):
        if not key.endswith(b":instances"):
            await bus.client.delete(key)
    for call in calls:
        assert (await asyncio.wait_for(call, 10))[0] == 503
