"""What a set's broker shows of it, read once and without changing anything."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared.leadership import leader_of
from shared.ledger import LEDGER_KEY, Ledger
from shared.messages import Instance
from shared.streams import EVENTS, SCHEDULE, TOKENIZE, Bus

OLD_ENTRIES_LOOKED_AT = 1
_instance = msgspec.json.Decoder(Instance)
_ledger = msgspec.json.Decoder(Ledger)


@dataclass(frozen=True, slots=True)
class Broker:
    """The server itself. now: its clock, unix seconds; max_memory: bytes, 0 for no limit; keeps: whether it has an
    append-only file, and can_write: whether the last write of it went well."""

    version: str
    now: float
    memory: int
    max_memory: int
    eviction: str
    keeps: bool
    can_write: bool


@dataclass(frozen=True, slots=True)
class Work:
    """A stream of open work. unread, pending: entries that nobody has read, or read and not finished; unread_s: how
    long the oldest unread one has waited; idle_s: since the oldest pending one was last given to somebody."""

    length: int
    has_group: bool = False
    unread: int = 0
    unread_s: float = 0.0
    pending: int = 0
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """A stream's dead letters and why the last of them is one."""

    stream: str
    count: int
    last_why: str


@dataclass(slots=True)
class Snapshot:
    """instances: as registered; broken: registry fields that do not decode; lengths: of the logs, by name; owners:
    the token shards' readers, None where there is none; unexpiring: plan and reply streams that would stay for ever."""

    broker: Broker
    instances: list[Instance] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    work: dict[str, Work] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    owners: dict[int, str | None] = field(default_factory=dict)
    dead: list[DeadLetters] = field(default_factory=list)
    unexpiring: list[str] = field(default_factory=list)
    leader: str | None = None
    ledger: Ledger | None = None


async def look(bus: Bus) -> Snapshot:
    """Raises LOST_CONNECTION when the broker does not answer."""
    snapshot = Snapshot(await _broker(bus))
    await _look_at_instances(bus, snapshot)
    for stream in (TOKENIZE, SCHEDULE):
        assert stream.group is not None
        snapshot.work[stream.name] = await _work(bus, stream.name, stream.group, snapshot.broker.now)
    snapshot.lengths[EVENTS.name] = await _length(bus, EVENTS.name)
    await _look_at_shards(bus, snapshot)
    await _look_at_keys(bus, snapshot)
    snapshot.leader = await leader_of(bus)
    books: Any = await bus.client.get(bus.key(LEDGER_KEY))
    snapshot.ledger = None if books is None else _ledger.decode(books)
    return snapshot


async def _broker(bus: Bus) -> Broker:
    info: dict[str, Any] = await bus.client.info()
    seconds, micros = await bus.client.time()
    return Broker(
        version=str(info.get("valkey_version") or info["redis_version"]),
        now=int(seconds) + int(micros) / 1e6,
        memory=int(info["used_memory"]),
        max_memory=int(info.get("maxmemory", 0)),
        eviction=str(info.get("maxmemory_policy", "")),
        keeps=bool(info.get("aof_enabled")),
        can_write=info.get("aof_last_write_status", "ok") == "ok",
    )


async def _look_at_instances(bus: Bus, snapshot: Snapshot) -> None:
    registered: Any = await bus.client.hgetall(bus.key("instances"))
    for name, value in registered.items():
        try:
            snapshot.instances.append(_instance.decode(value))
        except msgspec.DecodeError:
            snapshot.broken.append(name.decode(errors="replace"))
    snapshot.instances.sort(key=lambda one: (one.service, one.instance))


async def _work(bus: Bus, name: str, group: str, now: float) -> Work:
    key = bus.key(name)
    length = await _length(bus, name)
    if not length:
        return Work(0)
    groups: Any = await bus.client.xinfo_groups(key)
    ours = next((one for one in groups if one["name"] in (group, group.encode())), None)
    if ours is None:
        return Work(length)
    delivered = ours["last-delivered-id"]
    after = "(" + (delivered.decode() if isinstance(delivered, bytes) else delivered)
    unread: Any = await bus.client.xrange(key, after, "+", OLD_ENTRIES_LOOKED_AT)
    pending = int(ours["pending"])
    oldest: Any = await bus.client.xpending_range(key, group, "-", "+", 1) if pending else []
    return Work(
        length,
        has_group=True,
        unread=max(0, length - pending),
        unread_s=now - int(unread[0][0].partition(b"-")[0]) / 1000 if unread else 0.0,
        pending=pending,
        idle_s=oldest[0]["time_since_delivered"] / 1000 if oldest else 0.0,
    )


async def _length(bus: Bus, name: str) -> int:
    return int(await bus.client.xlen(bus.key(name)))


async def _look_at_shards(bus: Bus, snapshot: Snapshot) -> None:
    count: Any = await bus.client.get(bus.key("token_shards"))
    for shard in range(int(count or 0)):
        owner: Any = await bus.client.get(bus.key(f"shard:{shard}:owner"))
        snapshot.owners[shard] = None if owner is None else owner.decode()
        snapshot.lengths[f"tokens:{shard}"] = await _length(bus, f"tokens:{shard}")


async def _look_at_keys(bus: Bus, snapshot: Snapshot) -> None:
    """Whatever has an addressee in its name, and the dead letters."""
    prefix = bus.key("")
    async for key in bus.client.scan_iter(match=f"{prefix}*", count=1000, _type="STREAM"):
        name = key.decode(errors="replace").removeprefix(prefix)
        if name.endswith(".dead"):
            last: Any = await bus.client.xrevrange(key, count=1)
            why = last[0][1].get(b"why", b"").decode(errors="replace") if last else ""
            snapshot.dead.append(DeadLetters(name, int(await bus.client.xlen(key)), why))
            continue
        if name.startswith("plan:"):
            snapshot.lengths[name] = int(await bus.client.xlen(key))
        if name.startswith(("plan:", "reply:")) and await bus.client.ttl(key) == -1:
            snapshot.unexpiring.append(name)
