"""What must be true once all is quiet: nothing pending, no page held, no key left behind."""

import asyncio
import time

import redis

from tests.chaos.cluster import PREFIX, Cluster

CLEAN_S = 40.0
"""Trimming, lapses and leases take their time."""


def dirt(cluster: Cluster, broker: "redis.Redis") -> list[str]:
    """What is left, in words."""
    found = []
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
        elif not is_known(cluster, name):
            found.append(f"key {name}")
    return found


def is_known(cluster: Cluster, name: str) -> bool:
    """Whether a key belongs to the set as it stands."""
    family, _, rest = name.partition(":")
    match family:
        case "plan" | "reply":
            return rest.partition(":")[0] in cluster.processes
        case "tokens" | "shard":
            return True
        case "tokenize" | "schedule" | "events" | "instances" | "scheduler-leader" | "token_shards" | "ledger":
            return not rest
    return family.startswith("grammar")


async def assert_clean(cluster: Cluster, broker: "redis.Redis") -> None:
    deadline = time.monotonic() + CLEAN_S
    while left := dirt(cluster, broker):
        assert time.monotonic() < deadline, "\n".join(left)
        await asyncio.sleep(0.5)
