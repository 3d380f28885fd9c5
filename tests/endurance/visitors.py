"""Clients of every sort: those who read to the end, and those who leave in the middle of anything."""

import asyncio
import json
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp

SILENCE_S = 90.0
COLOURS = [["red", "green"], ["one", "two", "three"], ["yes", "no"], ["north", "south", "east", "west"]]
_letters = random.Random(0)
WORDS = ["".join(_letters.choices("abcdefghijklmnopqrstuvwxyz", k=_letters.randrange(2, 9))) for _ in range(500)]
"""As few as people use: a tokenizer remembers how it cut the last 10,000, and would grow until it has seen so many."""


class Visitors:
    """Asks one of `urls` in one of many ways. outcomes: how often each way ended in which way; faults: what was not as
    it has to be."""

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self._urls = urls
        self._rng = rng
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=SILENCE_S, sock_connect=10),
        )
        self._ways: dict[Callable[[], Awaitable[str]], int] = {
            self.reads_a_stream: 30,
            self.reads_a_whole: 15,
            self.leaves_in_the_middle: 20,
            self.leaves_before_the_first_byte: 14,
            self.leaves_in_the_middle_of_its_body: 5,
            self.leaves_several_choices: 3,
            self.has_little_time: 4,
            self.holds_to_a_grammar: 3,
            self.never_comes_back: 2,
            self.comes_back: 2,
            self.asks_for_nonsense: 2,
        }
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    async def close(self) -> None:
        await self._http.close()

    async def visit(self) -> None:
        """One request, in a way that comes by chance."""
        way = self._rng.choices(list(self._ways), list(self._ways.values()))[0]
        name = way.__name__.replace("_", " ")
        try:
            outcome = await way()
        except (aiohttp.ClientError, OSError, AssertionError, ValueError) as error:
            outcome = type(error).__name__
            self.faults.append(f"{name}: {error!r}")
        self.outcomes[f"{name}: {outcome}"] += 1

    def _request(self, **fields: Any) -> dict[str, Any]:
        prompt = " ".join(self._rng.choices(WORDS, k=self._rng.randrange(1, 12)))
        return {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": self._rng.randrange(1, 25),
            "ignore_eos": True,
            "temperature": self._rng.choice([0, 1]),
            **fields,
        }

    def _post(self, request: dict[str, Any], **headers: str) -> Any:
        return self._http.post(f"{self._rng.choice(self._urls)}/v1/completions", json=request, headers=headers)

    async def reads_a_stream(self) -> str:
        async with self._post(self._request(stream=True)) as response:
            return await self._read_all(response)

    async def _read_all(self, response: aiohttp.ClientResponse) -> str:
        assert response.status == 200, await response.text()
        last = b""
        async for line in response.content:
            assert not line.startswith(b'data: {"error"'), line
            last = line.strip() or last
        assert last == b"data: [DONE]", last
        return "whole"

    async def reads_a_whole(self) -> str:
        async with self._post(self._request()) as response:
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["choices"][0]["finish_reason"] == "length"
            return "whole"

    async def leaves_in_the_middle(self) -> str:
        """After some events, which it may take its time to read."""
        async with self._post(self._request(stream=True, max_tokens=200)) as response:
            assert response.status == 200, await response.text()
            left = self._rng.randrange(1, 8)
            async for _ in response.content:
                left -= 1
                if not left:
                    break
            if self._rng.random() < 0.1:
                await asyncio.sleep(0.3)
            response.close()
        return "left"

    async def leaves_before_the_first_byte(self) -> str:
        await self._cut(self._request(stream=self._rng.random() < 0.5, max_tokens=100), 1.0)
        return "left"

    async def leaves_in_the_middle_of_its_body(self) -> str:
        await self._cut(self._request(), self._rng.random())
        return "left"

    async def _cut(self, request: dict[str, Any], share: float) -> None:
        """Sends a share of the request, and hangs up soon or at once."""
        host, _, port = self._rng.choice(self._urls).removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(request).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        writer.write(sent[: int(len(sent) * share)])
        await writer.drain()
        await asyncio.sleep(self._rng.choice([0, 0.001, 0.01, 0.05]))
        if self._rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()

    async def leaves_several_choices(self) -> str:
        request = self._request(stream=True, n=3, max_tokens=80, stop=["ab", "zz"])
        async with self._post(request) as response:
            assert response.status == 200, await response.text()
            await response.content.readline()
            response.close()
        return "left"

    async def has_little_time(self) -> str:
        async with self._post(self._request(max_tokens=300, timeout=self._rng.uniform(0.01, 0.3))) as response:
            await response.read()
            assert response.status in (200, 504), response.status
            return str(response.status)

    async def holds_to_a_grammar(self) -> str:
        choice = self._rng.choice(COLOURS)
        request = self._request(guided_choice=choice)
        del request["ignore_eos"], request["max_tokens"]
        async with self._post(request) as response:
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["choices"][0]["text"] in choice, answer
            return "whole"

    async def never_comes_back(self) -> str:
        request = self._request(stream=True, max_tokens=100)
        async with self._post(request, **{"Idempotency-Key": secrets.token_hex(8)}) as response:
            assert response.status == 200, await response.text()
            await response.content.readline()
            response.close()
        return "left"

    async def comes_back(self) -> str:
        """In the middle, for the rest, to any gateway."""
        request, key = self._request(stream=True, max_tokens=20), secrets.token_hex(8)
        last = ""
        async with self._post(request, **{"Idempotency-Key": key}) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"id: "):
                    last = line[4:].decode().strip()
                    break
            response.close()
        async with self._post(request, **{"Idempotency-Key": key, "Last-Event-ID": last}) as response:
            return await self._read_all(response)

    async def asks_for_nonsense(self) -> str:
        async with self._post(self._request(temperature="warm")) as response:
            assert response.status == 400, await response.text()
            return "400"
