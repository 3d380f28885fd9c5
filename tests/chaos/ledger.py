"""What must be true once all is quiet: nothing pending, no page held, no key left behind."""

import asyncio
import time

import msgspec
import redis

from shared.ledger import LEDGER_KEY, Ledger
from tests.chaos.cluster import PREFIX

CLEAN_S = 40.0
"""Trimming, lapses and leases take their time."""


def dirt(broker: "redis.Redis") -> list[str]:
    """What is left, in words."""
    found = unbalanced(broker)
    for stream, group in (("tokenize", "tokenizers"), ("schedule", "schedulers")):
        length = broker.xlen(f"{PREFIX}:{stream}")
        pending = broker.xpending(f"{PREFIX}:{stream}", group)["pending"]
        if length or pending:
            found.append(f"{stream}: {length} entries, {pending} pending")
    for key in broker.scan_iter(f"{PREFIX}:*"):
        name = key.decode().removeprefix(f"{PREFIX}:")
        if name.endswith(".dead"):
            found.append(f"{name}: {broker.xrange(key)}")
        elif name.startswith("tokens:") and (length := broker.xlen(key)) > 1:
            found.append(f"{name}: {length} entries")
        elif name.startswith("plan:") and broker.xlen(key) > 2:
            found.append(f"{name}: {broker.xlen(key)} entries")
        elif not is_known(name) and broker.ttl(key) == -1:
            found.append(f"key {name}")
    return found


def is_known(name: str) -> bool:
    """Whether a key is there for as long as the set is; all others are to go by themselves."""
    family = name.partition(":")[0]
    lasting = {"tokenize", "schedule", "events", "instances", "token_shards", "scheduler-term"}
    return name in lasting or family in {"plan", "tokens", "grammar", "grammars"}


def unbalanced(broker: "redis.Redis") -> list[str]:
    """What the scheduler's books say that is not so when nothing runs."""
    books = broker.get(f"{PREFIX}:{LEDGER_KEY}")
    if not isinstance(books, bytes):
        return ["the scheduler publishes no ledger"]
    ledger = msgspec.json.decode(books, type=Ledger)
    found = [f"{ledger.sequences} sequences are in the books"] if ledger.sequences else []
    for worker in ledger.workers:
        if worker.imbalance or worker.free + worker.cached != worker.pool:
            found.append(f"pages: {worker}")
    return found if len(ledger.workers) == 2 else [*found, f"{len(ledger.workers)} workers"]


async def assert_clean(broker: "redis.Redis") -> None:
    deadline = time.monotonic() + CLEAN_S
    while left := dirt(broker):
        assert time.monotonic() < deadline, "\n".join(left)
        await asyncio.sleep(0.5)
