"""Which tokenizer process reads which token shard: a lease a shard in Redis, shared out evenly.

The lease says who *should* read. Two processes that both think they own a shard for a moment do no harm: both
send the same characters at the same offsets, and an owner trims only entries of sequences that it has
answered to the end; so the lease carries no fencing token.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from prometheus_client import Gauge

from shared.errors import ConfigError
from shared.streams import LOST_CONNECTION, Bus, persistently

log = logging.getLogger(__name__)

LEASE_S = 3.0
TICK_S = 0.5

SHARDS_OWNED = Gauge("sapwood_tokenizer_shards_owned", "Token shards that this process reads")

RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
TAKE = (
    "local owner = redis.call('get', KEYS[1]) "
    "if not owner or owner == ARGV[2] then redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[3]) return 1 end return 0"
)
"""A shard that is free, or is still held in the name of a process that is known to be down."""

RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


async def agree_on_shards(bus: Bus, token_shards: int) -> None:
    """Makes sure that every process counts the same shards. Raises ConfigError if this one does not."""
    key = bus.key("token_shards")

    async def recorded_shards() -> int:
        await bus.client.set(key, token_shards, nx=True)
        recorded: Any = await bus.client.get(key)
        return token_shards if recorded is None else int(recorded)

    recorded = await persistently("agreeing on token shards", recorded_shards)
    if recorded != token_shards:
        raise ConfigError(
            f"--token-shards (SAPWOOD_TOKEN_SHARDS) is {token_shards} here and {recorded} in this deployment; "
            f"to change it, stop all of its tokenizers and delete the key {key}"
        )


def plan(owners: Sequence[str | None], me: str, live: AbstractSet[str]) -> tuple[list[int], list[int]]:
    """(shards to release, free shards to take) for `me`, one of the `live` processes. owners[k]: who holds k.

    Nobody takes more than a fair share, rounded up, and nobody takes a shard while another has less than a fair share
    rounded down; those with more than that release as many as others miss."""
    count, members = len(owners), sorted(live | {me})
    least, most = count // len(members), -(-count // len(members))
    owned = {member: [shard for shard, owner in enumerate(owners) if owner == member] for member in members}
    mine = owned[me]
    release = mine[most:]
    free = [shard for shard, owner in enumerate(owners) if owner is None]
    missing = sum(max(0, least - len(shards)) for shards in owned.values())
    for member in members:
        spare = min(len(owned[member]), most) > least and missing > len(free)
        if spare:
            missing -= 1
            if member == me and not release:
                release = mine[-1:]
    others_miss = any(len(owned[member]) < least for member in members if member != me)
    goal = least if others_miss else most
    start = members.index(me) * least  # not all at the same one
    take = sorted(free, key=lambda shard: (shard - start) % count)[: max(0, goal - len(mine))]
    return release, take


class Leases:
    """This process's shards. `on_gain` and `on_loss` are told of each as it comes and goes.

    live: the tokenizer processes that run; down: those that are known not to, whose leases need not lapse first. Both
    are kept up to date by the owner of this object."""

    def __init__(
        self, bus: Bus, me: str, count: int, on_gain: Callable[[int], None], on_loss: Callable[[int], None]
    ) -> None:
        self.live: frozenset[str] = frozenset([me])
        self.down: frozenset[str] = frozenset()
        self.owned: set[int] = set()
        self._bus = bus
        self._me = me
        self._on_gain = on_gain
        self._on_loss = on_loss
        self._keys = [bus.key(f"shard:{shard}:owner") for shard in range(count)]
        self._renewed_at = 0.0

    async def run(self) -> None:
        """Keeps, takes and gives shards for ever; gives all back when cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    await self.tick()
                    self._renewed_at = loop.time()
                except LOST_CONNECTION as error:
                    log.warning("renewing shard leases: %s", error)
                    if loop.time() - self._renewed_at > LEASE_S:  # others may hold them by now
                        self._set_owned(set())
                await asyncio.sleep(TICK_S)
        finally:
            await self.release_all()

    async def tick(self) -> None:
        """One round: renew what is held, then release or take what fairness asks."""
        held = sorted(self.owned)
        renewed = await self._eval(RENEW, held, int(LEASE_S * 1000))
        self._set_owned({shard for shard, ok in zip(held, renewed, strict=True) if ok})
        replies: list[Any] = await self._bus.client.mget(self._keys)
        holders = [None if owner is None else owner.decode() for owner in replies]
        owners = [None if holder in self.down - {self._me} else holder for holder in holders]
        release, take = plan(owners, self._me, self.live)
        if release:
            self._set_owned(self.owned.difference(release))
            await self._eval(RELEASE, release)
        for shard in take:
            took: Any = await self._bus.client.eval(
                TAKE, 1, self._keys[shard], self._me, holders[shard] or "", int(LEASE_S * 1000)
            )
            if took:
                self._set_owned(self.owned | {shard})

    async def release_all(self) -> None:
        """Lets others take this process's shards at once; a broker that is gone lets them lapse."""
        held = sorted(self.owned)
        self._set_owned(set())
        try:
            async with asyncio.timeout(1):
                await self._eval(RELEASE, held)
        except (TimeoutError, *LOST_CONNECTION) as error:
            log.warning("could not release shard leases: %s", error)

    def _set_owned(self, owned: set[int]) -> None:
        lost, gained = self.owned - owned, owned - self.owned
        self.owned = owned
        for shard in sorted(lost):
            self._on_loss(shard)
        for shard in sorted(gained):
            self._on_gain(shard)
        if lost or gained:
            SHARDS_OWNED.set(len(owned))
            log.info("reading token shards %s", sorted(owned))

    async def _eval(self, script: str, shards: Sequence[int], *args: int) -> list[Any]:
        if not shards:
            return []
        pipeline = self._bus.client.pipeline(transaction=False)
        for shard in shards:
            pipeline.eval(script, 1, self._keys[shard], self._me, *args)
        return list(await pipeline.execute())
