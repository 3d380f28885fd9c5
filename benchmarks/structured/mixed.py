"""What constrained requests cost the free ones beside them: the same tokens, at which pace?

    python -m benchmarks.structured.mixed URL [--each 32] [--tokens 64] [--rounds 3]

Streams `--each` free greedy requests beside as many other free ones, and then beside as many constrained ones, in turn
and several times. The texts of the first must be the same each time; their time between tokens is compared (median of
all gaps). Exits with 1 if a text differs.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

import aiohttp

Json = Any
CITY: Json = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "country": {"type": "string", "maxLength": 24},
        "population": {"type": "integer"},
        "landmarks": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 2, "maxItems": 6},
        "description": {"type": "string", "minLength": 200},
    },
    "required": ["city", "country", "population", "landmarks", "description"],
    "additionalProperties": False,
}
AS_CITY: Json = {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--each", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.exit(asyncio.run(measure(args.url, args.each, args.tokens, args.rounds)))


async def measure(url: str, each: int, tokens: int, rounds: int) -> int:
    async with aiohttp.ClientSession(
        base_url=url, timeout=aiohttp.ClientTimeout(total=600), connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        async with http.get("/v1/models") as response:
            model = (await response.json())["data"][0]["id"]

        def body(number: int, extra: Json) -> Json:
            return {
                "model": model, "prompt": f"{number}. About a city that I like:", "max_tokens": tokens, "stream": True,
                "temperature": 0,
            } | extra  # fmt: skip

        free = [body(number, {"ignore_eos": True}) for number in range(each)]
        others = [body(100 + number, {"ignore_eos": True}) for number in range(each)]
        bound = [body(100 + number, AS_CITY) for number in range(each)]
        await batch(http, free[:4] + bound[:4], 4)  # the grammar is compiled, the steps are captured
        gaps: dict[str, list[float]] = {"free": [], "constrained": []}
        texts: list[list[str]] = []
        for _ in range(rounds):
            for name, beside in (("free", others), ("constrained", bound)):
                found, times = await batch(http, free + beside, each)
                texts.append(found)
                gaps[name] += times
                print(f"beside {each} {name}: ITL p50 {statistics.median(times) * 1e3:.2f} ms", flush=True)
    different = sum(len(set(versions)) > 1 for versions in zip(*texts, strict=True))
    medians = {name: statistics.median(times) * 1e3 for name, times in gaps.items()}
    print(f"\n{each} free requests, {tokens} tokens each, {rounds} rounds: {different} with texts that differ")
    change = medians["constrained"] / medians["free"] - 1
    free_ms, bound_ms = medians["free"], medians["constrained"]
    print(f"ITL p50 {free_ms:.2f} ms beside free ones, {bound_ms:.2f} ms beside constrained ones: {change:+.1%}")
    return int(different > 0)


async def batch(http: aiohttp.ClientSession, bodies: list[Json], num_watched: int) -> tuple[list[str], list[float]]:
    """(texts, gaps between chunks) of the first ones."""
    gaps: list[float] = []

    async def read(place: int, body: Json) -> str:
        text, last = "", None
        async with http.post("/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    now = time.monotonic()
                    if place < num_watched and last is not None:
                        gaps.append(now - last)
                    last = now
                    text += json.loads(line[len("data: ") :])["choices"][0]["text"]
        return text

    texts = await asyncio.gather(*(read(place, body) for place, body in enumerate(bodies)))
    return texts[:num_watched], gaps


if __name__ == "__main__":
    main()
