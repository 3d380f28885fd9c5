"""Constrained answers of the default model: they match, also when pages run out or a worker dies in the middle."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest

pytestmark = pytest.mark.model

MODEL = "SmolLM2-135M-Instruct"
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "country": {"type": "string", "maxLength": 24},
        "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
        "landmarks": {
            "type": "array",
            "minItems": 2,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 16},
                    "year_built": {"type": "integer", "minimum": 0, "maximum": 2100},
                },
                "required": ["name", "year_built"],
                "additionalProperties": False,
            },
        },
        "climate": {"enum": ["tropical", "dry", "temperate", "continental", "polar"]},
    },
    "required": ["city", "country", "population", "landmarks", "climate"],
    "additionalProperties": False,
}
AS_CITY = {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}}
PATTERNS = [r"\+[0-9]{2} [0-9]{3}-[0-9]{4}", "(yes|no), because [a-z ]{5,40}\\.", "[A-Z]{2,4}-(alpha|beta|alphabet)"]


async def complete(url: str, prompt: str, **options: Any) -> dict[str, Any]:
    """The answer to a completion request, by token."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 200, **options}
    timeout = aiohttp.ClientTimeout(total=240)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{url}/v1/completions", json=body) as response,
    ):
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


async def stream(url: str, prompt: str, **options: Any) -> AsyncIterator[str]:
    """The pieces of an answer's text as they come."""
    body = {"model": MODEL, "prompt": prompt, "stream": True, **options}
    timeout = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.post(f"{url}/v1/completions", json=body) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[len("data: ") :])
                assert "error" not in chunk, chunk
                yield chunk["choices"][0]["text"]


async def num_retractions(first_port: int, count: int) -> float:
    """As the scheduler counts them; its port is one of the row."""
    found = 0.0
    async with aiohttp.ClientSession() as http:
        for port in range(first_port, first_port + count):
            async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
                for value in re.findall(
                    r"^sapwood_scheduler_retractions_total(?:{.*})? (.+)$", await response.text(), re.M
                ):
                    found += float(value)
    return found


def check_city(answer: dict[str, Any]) -> None:
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop", answer
    jsonschema.validate(json.loads(choice["text"]), CITY)
    details = answer["usage"]["completion_tokens_details"]
    assert 10 < details["forced_tokens"] < answer["usage"]["completion_tokens"]


def worker_pid(children: set[int]) -> int:
    (pid,) = (pid for pid in children if b"services.gpu_worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return pid


async def test_answers_match_their_schema_or_pattern(sapwood: Any) -> None:
    async with asyncio.timeout(240):
        cities = [complete(sapwood.url, f"City number {i}:", seed=i, temperature=1, **AS_CITY) for i in range(2)]
        matches = [
            complete(sapwood.url, f"Number {i}:", seed=i, temperature=1, regex=pattern)
            for i, pattern in enumerate(PATTERNS)
        ]
        answers = await asyncio.gather(*cities, *matches)
    for answer in answers[:2]:
        check_city(answer)
    for answer, pattern in zip(answers[2:], PATTERNS, strict=True):
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(pattern, choice["text"]), choice["text"]


async def test_free_answers_are_the_same_beside_constrained_ones(sapwood: Any) -> None:
    prompts = [f"Once upon a time, in year {1900 + 7 * i}," for i in range(3)]

    async def free() -> list[str]:
        asked = [complete(sapwood.url, prompt, temperature=0, max_tokens=24) for prompt in prompts]
        return [answer["choices"][0]["text"] for answer in await asyncio.gather(*asked)]

    alone = await free()
    beside, *cities = await asyncio.gather(
        free(), *(complete(sapwood.url, f"A city, {i}:", seed=i, temperature=1, **AS_CITY) for i in range(2))
    )
    assert beside == alone
    for answer in cities:
        check_city(answer)


@pytest.mark.slow
async def test_answers_go_on_when_pages_run_out_and_when_the_worker_dies(
    serve: Callable[..., Any], free_ports: Callable[[int], int]
) -> None:
    """Five answers of three pages and more on six pages: some are taken away in the middle, and come back."""
    metrics = free_ports(4)
    served = serve(
        *("--num-pages", "6", "--headroom-tokens", "8", "--low-water-tokens", "4", "--metrics-port", str(metrics))
    )
    pattern = "([a-z]{3} ){8}(alpha|beta) the end ([a-z]{3} ){4}over"
    options = {"temperature": 1, "max_tokens": 70, "regex": pattern}
    answers = await asyncio.gather(*(complete(served.url, f"A {i}:", seed=i, **options) for i in range(5)))
    for answer in answers:
        assert re.fullmatch(pattern, answer["choices"][0]["text"]), answer
    assert await num_retractions(metrics, 4) > 0

    pieces: list[str] = []
    async for text in stream(served.url, "A town:", seed=1, **options):
        pieces.append(text)
        if len(pieces) == 3:
            os.kill(worker_pid(served.children), signal.SIGKILL)
    assert len(pieces) > 6
    assert re.fullmatch(pattern, "".join(pieces)), pieces
