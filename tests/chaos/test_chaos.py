"""Nothing is lost: streams over a set whose processes are hurt one after the other.

Without a setting, both kinds of clients meet a few blows of common kinds, side by side.
`SAPWOOD_CHAOS_ROUNDS=20 pytest tests/chaos/test_chaos.py -m slow -s -k anew` hurts every kind of process in every way
twenty times while clients send what breaks off anew; with `-k returning` they come back for the rest of it.
`SAPWOOD_CHAOS_SEED` gives another order, `SAPWOOD_CHAOS_STREAMS` sets how many streams run at once,
`SAPWOOD_CHAOS_REPORT` names a file for the numbers, `SAPWOOD_CHAOS_LOGS` a folder for the processes' logs, and
`SAPWOOD_CHAOS_BLOWS` gives blows of one's own ("kill scheduler-0, cut gateway-1, crash broker").
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.client import Client, Request, ReturningClient, Stream, kind_of, some_requests
from tests.chaos.cluster import Cluster
from tests.chaos.harm import Blow, Struck, blows, strike
from tests.chaos.ledger import assert_clean
from tests.chaos.margins import Margins
from tests.chaos.report import summary, table

SEED = int(os.environ.get("SAPWOOD_CHAOS_SEED", "1"))
ROUNDS = int(os.environ.get("SAPWOOD_CHAOS_ROUNDS", "0"))
BLOWS = [Blow(*one.split()) for one in os.environ.get("SAPWOOD_CHAOS_BLOWS", "").split(",") if one.strip()]
REPORT = os.environ.get("SAPWOOD_CHAOS_REPORT")
AT_ONCE = int(os.environ.get("SAPWOOD_CHAOS_STREAMS", "16" if ROUNDS else "8"))
PAUSE_S = (1.5, 4.0)
"""Between two blows."""

CLIENTS: dict[str, list[type[Client]]] = (
    {"anew": [Client], "returning": [ReturningClient]} if ROUNDS or BLOWS else {"both": [Client, ReturningClient]}
)

MIN_MARGIN = 1e-5
"""Of the choices in an answer, see `Margins`."""

EVERYDAY = [
    Blow("kill", "gpu_worker-0"),
    Blow("cut", "scheduler-0"),
    Blow("kill", "tokenizer-1"),
    Blow("kill", "scheduler-0"),
    Blow("pause", "gpu_worker-1"),
    Blow("kill", "gateway-0"),
]


async def load(client: Client, requests: Sequence[Request], streams: list[Stream], stop: asyncio.Event) -> None:
    """One user who asks again and again until told to stop."""
    while not stop.is_set():
        stream = Stream(len(streams), len(streams) % len(requests))
        streams.append(stream)
        await client.answer(requests[stream.request], stream)
        if stream.fault is not None:
            print(f"{time.strftime('%H:%M:%S')} stream {stream.number}: {stream.fault}", flush=True)


async def hurt(cluster: Cluster, order: Sequence[Blow], rng: random.Random) -> list[Struck]:
    struck = []
    for blow in order:
        await asyncio.sleep(rng.uniform(*PAUSE_S))
        print(f"{time.strftime('%H:%M:%S')} {blow.kind} {blow.process}", flush=True)
        struck.append(await strike(cluster, blow))
    await asyncio.sleep(PAUSE_S[1])
    return struck


def num_common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def faults(streams: Sequence[Stream], alone: Sequence[Stream]) -> list[str]:
    """What is not as it is without harm."""
    found = []
    for stream in streams:
        want = alone[stream.request]
        if stream.fault is not None:
            found.append(f"stream {stream.number}: {stream.fault}")
        elif (stream.text, stream.finish_reason) != (want.text, want.finish_reason):
            at = num_common(stream.text, want.text)
            found.append(
                f"stream {stream.number} of request {stream.request}: differs from character {at} of {len(want.text)}: "
                f"{stream.text[at : at + 40]!r}, not {want.text[at : at + 40]!r}"
            )
        elif stream.usage["completion_tokens"] != want.usage["completion_tokens"]:
            found.append(f"stream {stream.number}: usage {stream.usage}, not {want.usage}")
    return found


def write_report(numbers: dict[str, Any]) -> None:
    if REPORT:
        Path(REPORT).write_text(json.dumps(numbers, indent=2))


@pytest.mark.slow
@pytest.mark.timeout(200 + 200 * max(1, ROUNDS))
@pytest.mark.parametrize("kinds", CLIENTS.values(), ids=CLIENTS)
async def test_every_answer_is_as_without_harm(cluster: Cluster, kinds: list[type[Client]], tiny_model: Path) -> None:
    rng = random.Random(SEED)
    if ROUNDS:
        margins = Margins(tiny_model)
        requests = some_requests(rng, 24, lambda request: margins.least(request) > MIN_MARGIN)
    else:
        requests = some_requests(rng, 12)
    order = BLOWS or (list(blows(cluster, rng, ROUNDS)) if ROUNDS else EVERYDAY)
    clients = [kind(cluster.urls, random.Random(SEED)) for kind in kinds]
    with contextlib.closing(cluster.redis()) as broker:
        alone = [await clients[-1].answer(request, Stream(number, number)) for number, request in enumerate(requests)]
        assert not [stream.fault for stream in alone if stream.fault]
        assert len({stream.text for stream in alone}) == len(alone)
        streams: list[Stream] = []
        stop = asyncio.Event()
        users = [
            asyncio.create_task(load(clients[number % len(clients)], requests, streams, stop))
            for number in range(AT_ONCE)
        ]
        try:
            struck = await hurt(cluster, order, rng)
        finally:
            stop.set()
            await asyncio.gather(*users)
            for client in clients:
                await client.close()
        numbers = summary(streams, struck, [kind_of(request) for request in requests])
        print(table(numbers))
        write_report(numbers)
        found = faults(streams, alone)
        print(*found, sep="\n")
        assert not found, cluster.tails()
        assert not cluster.deaths()
        await cluster.until_ready()
        await assert_clean(broker)
