"""The serving workloads: what is asked, by how many clients, and what their prompts share.

    single   1 stream, 128 tokens in, 512 out: decode latency
    random   256 requests, 1,024 random tokens in, 128 out: nothing shared
    shared   16 groups of 32 requests, a group's prefix of 2,048 tokens and 128 of its own in, 128 out
    agent    64 agents of 6 turns, a preamble of 2,048 tokens that all share, 192 more in each turn, 64 out
    json     128 requests under a JSON schema, 256 in, at most 128 out
    free     json without the schema
    crowd    2,000 requests, a system prompt of 2,000 tokens and 64 in, 32 out

Prompts are token ids, so the client needs no tokenizer. `scale` multiplies the number of requests, `length` every
number of tokens.
"""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from shared.errors import ConfigError

FIRST_ID = 200  # below are often special tokens

CITY_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 24},
            "country": {"type": "string", "maxLength": 24},
            "population": {"type": "integer"},
            "landmarks": {
                "type": "array",
                "minItems": 2,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "maxLength": 16},
                        "year_built": {"type": "integer"},
                    },
                    "required": ["name", "year_built"],
                    "additionalProperties": False,
                },
            },
            "climate": {"type": "string", "enum": ["tropical", "dry", "temperate", "continental", "polar"]},
        },
        "required": ["city", "country", "population", "landmarks", "climate"],
        "additionalProperties": False,
    }
)


class Ask(msgspec.Struct, frozen=True):
    """One request: `prompt` token ids in, `max_tokens` out; exactly that many unless `has_schema`."""

    prompt: list[int]
    max_tokens: int
    has_schema: bool = False


class Session(msgspec.Struct, frozen=True):
    """Requests of one client, each sent when the one before is answered. start_s: not earlier than that."""

    asks: list[Ask]
    start_s: float = 0.0


class Sizes(msgspec.Struct, frozen=True):
    """Numbers of requests and tokens, scaled."""

    vocab: int
    scale: float
    length: float

    def count(self, number: int) -> int:
        return max(1, int(number * self.scale))

    def tokens(self, number: int) -> int:
        return max(1, int(number * self.length))

    def ids(self, draw: random.Random, number: int) -> list[int]:
        return [draw.randrange(FIRST_ID, self.vocab - 1) for _ in range(self.tokens(number))]


def _single(draw: random.Random, sizes: Sizes) -> list[Session]:
    return [Session([Ask(sizes.ids(draw, 128), sizes.tokens(512))])]


def _random(draw: random.Random, sizes: Sizes) -> list[Session]:
    return [Session([Ask(sizes.ids(draw, 1024), sizes.tokens(128))]) for _ in range(sizes.count(256))]


def _shared(draw: random.Random, sizes: Sizes) -> list[Session]:
    sessions = []
    for _ in range(16):
        prefix = sizes.ids(draw, 2048)
        for _ in range(sizes.count(32)):
            sessions.append(Session([Ask(prefix + sizes.ids(draw, 128), sizes.tokens(128))]))
    draw.shuffle(sessions)
    return sessions


def _agent(draw: random.Random, sizes: Sizes) -> list[Session]:
    preamble = sizes.ids(draw, 2048)
    sessions = []
    for _ in range(sizes.count(64)):
        history, asks = preamble, []
        for _ in range(6):
            history = history + sizes.ids(draw, 192)
            asks.append(Ask(history, sizes.tokens(64)))
        sessions.append(Session(asks))
    return sessions


def _json(draw: random.Random, sizes: Sizes) -> list[Session]:
    return [
        Session([Ask(sizes.ids(draw, 256), sizes.tokens(128), has_schema=True)]) for _ in range(sizes.count(128))
    ]  # fmt: skip


def _free(draw: random.Random, sizes: Sizes) -> list[Session]:
    return [Session([Ask(sizes.ids(draw, 256), sizes.tokens(128))]) for _ in range(sizes.count(128))]


def _crowd(draw: random.Random, sizes: Sizes) -> list[Session]:
    system = sizes.ids(draw, 2000)
    return [Session([Ask(system + sizes.ids(draw, 64), sizes.tokens(32))]) for _ in range(sizes.count(2000))]


WORKLOADS: Mapping[str, Callable[[random.Random, Sizes], list[Session]]] = MappingProxyType(
    {
        "single": _single,
        "random": _random,
        "shared": _shared,
        "agent": _agent,
        "json": _json,
        "free": _free,
        "crowd": _crowd,
    }
)


def make_sessions(workload: str, sizes: Sizes, seed: int, rate: float | None = None) -> list[Session]:
    """The sessions of a workload, the same for the same seed. rate: sessions that arrive a second, at random times;
    None: all at once. Raises ConfigError for an unknown name."""
    if workload not in WORKLOADS:
        raise ConfigError(f"--workload {workload}: no such workload; there are {', '.join(WORKLOADS)}")
    draw = random.Random(f"{workload}/{seed}")
    sessions = WORKLOADS[workload](draw, sizes)
    if rate is None:
        return sessions
    start_s, arriving = 0.0, []
    for session in sessions:
        arriving.append(Session(session.asks, start_s))
        start_s += draw.expovariate(rate)
    return arriving
