"""`Expect`, as a socket sees it: who is to send a body, and who is refused before."""

import asyncio
import json
from typing import Any

import pytest

BODY = b'{"model":"tiny","prompt":"a"}'


class Socket:
    """A connection that sends a request's head and waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def body(self, headers: dict[str, str]) -> Any:
        return json.loads(await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 10))


async def ask(gateway: Any, expect: str, *lines: str, size: int = len(BODY), version: str = "1.1") -> Socket:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    head = [
        f"POST /v1/completions HTTP/{version}",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {size}",
        f"Expect: {expect}",
        *lines,
    ]
    writer.write("\r\n".join([*head, "", ""]).encode())
    return Socket(reader, writer)


async def test_a_client_is_told_to_send_its_body(start: Any, backend: Any) -> None:
    gateway = await start(api_key="k")
    backend.texts = ["x"]
    client = await ask(gateway, "100-Continue", "Authorization: Bearer k")
    assert await client.head() == (100, {})
    client.writer.write(BODY)
    status, headers = await client.head()
    assert (status, headers.get("connection")) == (200, None)
    assert (await client.body(headers))["choices"][0]["text"] == "x"
    client.writer.close()


@pytest.mark.parametrize(
    ("expect", "key", "size", "status"),
    [
        ("100-continue", "wrong", len(BODY), 401),
        ("100-continue", "k", 1001, 413),
        ("foo", "k", len(BODY), 417),
        ("foo", "wrong", len(BODY), 417),
    ],
)
async def test_what_is_refused_is_refused_before_the_body(
    start: Any, expect: str, key: str, size: int, status: int
) -> None:
    """And the connection ends: what the client sends next may be that body or another request."""
    gateway = await start(api_key="k", max_body_bytes=1000)
    client = await ask(gateway, expect, f"Authorization: Bearer {key}", size=size)
    given, headers = await client.head()
    assert (given, headers["connection"]) == (status, "close")
    assert headers["x-request-id"]
    answer = await client.body(headers)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert ("100-continue" in answer["error"]["message"]) == (status == 417)
    client.writer.write(b"x" * size)
    assert await asyncio.wait_for(client.reader.read(), 10) == b""
    client.writer.close()


async def test_http_1_0_has_no_expectations(gateway: Any, backend: Any) -> None:
    backend.texts = ["x"]
    client = await ask(gateway, "foo", version="1.0")
    client.writer.write(BODY)
    assert (await client.head())[0] == 200
    client.writer.close()
