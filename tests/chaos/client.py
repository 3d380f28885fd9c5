"""Clients that stream answers, try again when their gateway dies, and note when each piece came."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

SILENCE_S = 90.0
"""A stream that brings nothing for so long hangs."""

Request = dict[str, Any]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 3, "maxItems": 12},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 999},
            "minItems": 8,
            "maxItems": 20,
        },
    },
    "required": ["name", "tags", "sizes"],
    "additionalProperties": False,
}


@dataclass
class Stream:
    """One request as its client saw it. times: when something came, time.monotonic(); resent: how often its
    connection broke and it was sent anew; refused: answers that asked to come back later; last_event: id of the last
    whole event, empty without one; resumed: how often the rest of it was asked for; left: how often the client itself
    hung up."""

    number: int
    request: int
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    resent: int = 0
    refused: int = 0
    last_event: str = ""
    resumed: int = 0
    left: int = 0
    fault: str | None = None


def some_requests(
    rng: random.Random, count: int, suits: Callable[[Request], bool] = lambda request: True
) -> list[Request]:
    """Greedy, sampled with a seed at temperature 1, and held to a grammar in both ways; many with a common stem."""
    stems = ["".join(rng.choice("abcdefgh ") for _ in range(96)) for _ in range(3)]
    out: list[Request] = []
    while len(out) < count:
        number = len(out)
        stem = rng.choice(stems)[: rng.choice([0, 40, 96])]
        prompt = stem + "".join(rng.choice("ijklmnop ") for _ in range(rng.randrange(4, 80)))
        request: Request = {"prompt": prompt, "max_tokens": rng.randrange(150, 400), "ignore_eos": True}
        request |= {"temperature": 0} if number % 2 == 0 else {"temperature": 1, "seed": rng.randrange(1 << 31)}
        if number % 4 >= 2:
            del request["ignore_eos"]
            request["response_format"] = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
        if suits(request):
            out.append(request)
    return out


def kind_of(request: Request) -> str:
    """What is special about it: how its tokens are drawn, and whether a grammar holds it."""
    drawn = "greedy" if request["temperature"] == 0 else "seeded"
    return f"{drawn}, json_schema" if "response_format" in request else drawn


class Client:
    """Sends requests to any of the gateways; what breaks off is asked for from the start."""

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self._urls = urls
        self._rng = rng
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=SILENCE_S, sock_connect=10),
        )

    async def close(self) -> None:
        await self._http.close()

    async def answer(self, request: Request, stream: Stream) -> Stream:
        """The whole answer, however often it takes; what went wrong for good is `stream.fault`."""
        deadline = time.monotonic() + 4 * SILENCE_S
        url = self._rng.choice(self._urls)
        while True:
            if time.monotonic() > deadline:
                stream.fault = f"no answer in {4 * SILENCE_S:.0f} s"
                return stream
            try:
                if await self._try(url, request, stream):
                    return stream
            except TimeoutError:
                stream.fault = f"silent for {SILENCE_S:.0f} s after {len(stream.text)} characters"
                return stream
            except (aiohttp.ClientError, OSError):
                stream.resent += 1
                url = next(other for other in self._rng.sample(self._urls, len(self._urls)) if other != url)
                await asyncio.sleep(0.05)

    async def _try(self, url: str, request: Request, stream: Stream) -> bool:
        """Whether the stream is over, for good or bad."""
        stream.text, stream.finish_reason = "", None
        async with self._http.post(f"{url}/v1/completions", json=self._body(request)) as response:
            return await self._read(response, stream)

    @staticmethod
    def _body(request: Request) -> Request:
        return {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, **request}

    async def _read(self, response: aiohttp.ClientResponse, stream: Stream) -> bool:
        """Takes the events of a response; whether the stream is over. Raises ClientError when it breaks off."""
        if response.status == 503 and "Retry-After" in response.headers:
            stream.refused += 1
            await asyncio.sleep(0.2)
            return False
        if response.status != 200:
            stream.fault = f"{response.status}: {await response.text()}"
            return True
        is_done = False
        event: dict[bytes, bytes] = {}
        async for line in response.content:
            self._on_line(stream)
            if line.strip():
                name, _, value = line.strip().partition(b": ")
                event[name] = value
                continue
            data, event_id = event.pop(b"data", b""), event.pop(b"id", b"")
            if not data:
                continue
            stream.times.append(time.monotonic())
            if data == b"[DONE]":
                is_done = True
                continue
            self._take(json.loads(data), stream)
            stream.last_event = event_id.decode() or stream.last_event
            if stream.fault is not None:
                return True
        if not is_done:
            raise aiohttp.ClientPayloadError("the stream broke off")
        return True

    def _on_line(self, stream: Stream) -> None:
        """A line of the stream has come."""

    @staticmethod
    def _take(event: dict[str, Any], stream: Stream) -> None:
        if "error" in event:
            stream.fault = f"error in the stream: {event['error']}"
            return
        if event.get("usage"):
            stream.usage = event["usage"]
        for choice in event["choices"]:
            if stream.finish_reason is not None:
                stream.fault = "text after the end"
            stream.text += choice["text"]
            stream.finish_reason = choice["finish_reason"] or stream.finish_reason


class ReturningClient(Client):
    """Gives every request a key and comes back for the rest of what breaks off, at another gateway, in each of the
    ways there are: it must get exactly what it has not had. It also hangs up by itself now and then, in mid event."""

    LINES_UNTIL_IT_HANGS_UP = 400
    """On average."""

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        super().__init__(urls, rng)
        self._name = f"{rng.getrandbits(64):016x}"

    async def _try(self, url: str, request: Request, stream: Stream) -> bool:
        headers = {"Idempotency-Key": f"{self._name}-{stream.number}"}
        if not stream.last_event:
            return await self._post(url, request, stream, headers)
        if self._rng.random() < 0.1:  # all of it once more: it joins the answer that is being made
            stream.text, stream.finish_reason, stream.last_event = "", None, ""
            return await self._post(url, request, stream, headers)
        stream.resumed += 1
        headers["Last-Event-ID"] = stream.last_event
        if self._rng.random() < 0.5:
            return await self._post(url, request, stream, headers)
        answer_id = stream.last_event.partition(":")[0]
        async with self._http.get(f"{url}/v1/streams/{answer_id}", headers=headers) as response:
            return await self._read(response, stream)

    async def _post(self, url: str, request: Request, stream: Stream, headers: dict[str, str]) -> bool:
        async with self._http.post(f"{url}/v1/completions", json=self._body(request), headers=headers) as response:
            return await self._read(response, stream)

    def _on_line(self, stream: Stream) -> None:
        if self._rng.random() * self.LINES_UNTIL_IT_HANGS_UP < 1:
            stream.left += 1
            raise aiohttp.ClientPayloadError("the client hung up")
