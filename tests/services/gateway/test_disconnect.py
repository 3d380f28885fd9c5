"""Clients that leave, or read slowly, or never."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared.messages import sequence_id

BODY = b'{"model":"tiny","prompt":["a","b"],"n":2,"stream":%s}'


async def raw_request(
    gateway: Any, is_streamed: bool, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port, **options)
    body = BODY % (b"true" if is_streamed else b"false")
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return reader, writer


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_has_its_sequences_aborted_at_once(
    gateway: Any, backend: Any, is_streamed: bool
) -> None:
    reader, writer = await raw_request(gateway, is_streamed)
    requests = [await backend.next(), await backend.next()]
    backend.delta(requests[0], "some")
    backend.finish(requests[0], choice=0)
    await backend.bus.outbox.flush()
    if is_streamed:
        assert b"some" in await asyncio.wait_for(reader.readuntil(b"some"), 5)
    await asyncio.sleep(0.05)
    left = time.monotonic()
    writer.close()
    abort = await backend.next_abort()
    assert time.monotonic() - left < 3  # milliseconds, but for a busy machine
    assert (
        abort.sequence_ids
        == [sequence_id(request.request_id, choice) for request in requests for choice in range(2)][1:]
    )
    async with gateway.http.get("/metrics") as response:
        assert "sapwood_requests_in_flight 0.0" in await response.text()


async def test_a_client_that_leaves_before_its_first_text(gateway: Any, backend: Any) -> None:
    _, writer = await raw_request(gateway, True)
    request = await backend.next()
    await backend.next()
    writer.transport.abort()
    assert sequence_id(request.request_id, 0) in (await backend.next_abort()).sequence_ids


async def test_an_answer_that_is_complete_aborts_nothing(gateway: Any, backend: Any) -> None:
    backend.texts = ["x"]
    _, writer = await raw_request(gateway, True)
    await backend.next()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.1)
    assert backend.num_aborts == 0


class NarrowClient:
    """A client whose socket takes a few kilobytes and which reads only when told."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def ask(self, port: int, fields: bytes = b"") -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", port))
        body = b'{"model":"tiny","prompt":"a","stream":true%b}' % fields
        await loop.sock_sendall(
            self._socket,
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        )

    async def read_all(self) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n"):
            piece = await loop.sock_recv(self._socket, 1 << 20)
            assert piece, "the gateway closed the connection"
            data += piece
        return bytes(data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def narrow() -> Iterator[NarrowClient]:
    client = NarrowClient()
    yield client
    client.close()


NUM_DELTAS, SIZE = 6000, 1000


async def flood(backend: Any, request: Any) -> None:
    """More text than the socket's buffers hold, a delta at a time."""
    for place in range(NUM_DELTAS):
        backend.delta(request, "x" * SIZE, offset=place * SIZE, num_tokens=place + 1)
        if place % 100 == 0:
            await backend.bus.outbox.flush()


async def test_a_slow_reader_gets_everything_in_few_events(gateway: Any, backend: Any, narrow: NarrowClient) -> None:
    await narrow.ask(gateway.settings.port)
    request = await backend.next()
    await flood(backend, request)
    backend.finish(request, num_tokens=NUM_DELTAS)
    await backend.bus.outbox.flush()
    await asyncio.sleep(0.2)
    answer = await asyncio.wait_for(narrow.read_all(), 30)
    assert answer.count(b"x") >= NUM_DELTAS * SIZE
    assert b"[DONE]" in answer
    assert answer.count(b"data: ") < NUM_DELTAS * 0.9


async def test_a_reader_that_reads_nothing_is_cut(start: Any, backend: Any, narrow: NarrowClient) -> None:
    gateway = await start(send_timeout_s=0.3)
    await narrow.ask(gateway.settings.port)
    request = await backend.next()
    await flood(backend, request)
    assert (await backend.next_abort()).sequence_ids == [sequence_id(request.request_id, 0)]


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_slow_reader_may_leave_so_much_unread(
    start: Any, backend: Any, narrow: NarrowClient, is_kept: bool
) -> None:
    gateway = await start(max_unread_bytes=1_000_000, resume_grace_s=1.0)
    await narrow.ask(gateway.settings.port, b',"resumable":true' if is_kept else b"")
    request = await backend.next()
    await flood(backend, request)
    assert (await backend.next_abort()).sequence_ids == [sequence_id(request.request_id, 0)]
