"""Brokers that want a password, a user or TLS."""

import time

import pytest
from redis.exceptions import ConnectionError, NoPermissionError

from shared.errors import BusError
from shared.streams import connect, wait_for_broker
from tests.brokers import Server, TlsFront


@pytest.mark.parametrize(
    ("user", "why"),
    [("sapwood:wrong@", "invalid username-password"), ("sapwood:@", "invalid|Authentication"), ("", "authenticated")],
    ids=["wrong", "empty", "none"],
)
async def test_a_refused_password_is_said_at_once(guarded: Server, user: str, why: str) -> None:
    client = connect(f"redis://{user}127.0.0.1:{guarded.port}/0")
    began = time.monotonic()
    with pytest.raises(BusError, match=f"the broker refuses us: .*({why})"):
        await wait_for_broker(client)
    assert time.monotonic() - began < 2
    await client.aclose()


async def test_the_recommended_user_reaches_nothing_but_our_keys(guarded: Server) -> None:
    client = connect(f"redis://sapwood:s3cret@127.0.0.1:{guarded.port}/0")
    await wait_for_broker(client)
    await client.set("sapwood:x", "1")
    for command in (("SET", "other", "1"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("SHUTDOWN",)):
        with pytest.raises(NoPermissionError):
            await client.execute_command(*command)  # type: ignore[no-untyped-call]
    await client.aclose()


async def test_tls_with_a_certificate_that_is_trusted(front: TlsFront) -> None:
    url = f"rediss://sapwood:s3cret@127.0.0.1:{front.port}/0"
    client = connect(f"{url}?ssl_ca_certs={front.certificate}")
    await wait_for_broker(client)
    assert await client.set("sapwood:x", "1")
    await client.aclose()
    stranger = connect(url)
    with pytest.raises(ConnectionError, match="certificate verify failed"):
        await stranger.ping()
    await stranger.aclose()
