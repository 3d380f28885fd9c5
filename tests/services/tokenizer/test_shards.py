"""Shard leases: every shard is read by one process, shares are fair, and a dead owner's shards move on."""

import asyncio
import random
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError

from services.tokenizer.shards import Leases, agree_on_shards, plan
from shared.errors import ConfigError
from shared.streams import Bus


@pytest.mark.parametrize("count", [1, 4, 7, 16])
def test_shares_become_fair_and_stay_put(count: int) -> None:
    """Processes come and go at random, each acting on what it sees; quiet rounds even the shares out."""
    rng = random.Random(count)
    owners: list[str | None] = [None] * count
    live: set[str] = set()
    for _ in range(30):
        live ^= {rng.choice("abcdef")}
        if not live:
            continue
        owners = [owner if owner in live else None for owner in owners]
        for _ in range(count + 3):
            for me in rng.sample(sorted(live), len(live)):
                release, take = plan(owners, me, live)
                assert all(owners[shard] == me for shard in release)
                assert all(owners[shard] is None for shard in take)
                for shard in release:
                    owners[shard] = None
                for shard in take:
                    owners[shard] = me
        assert None not in owners
        shares = [owners.count(member) for member in live]
        assert max(shares) - min(shares) <= 1
        for me in live:
            assert plan(owners, me, live) == ([], [])


class Member:
    """A process as far as leases go."""

    def __init__(self, bus: Bus, name: str, count: int) -> None:
        self.shards: set[int] = set()
        self.leases = Leases(bus, name, count, self.shards.add, self.shards.discard)


async def settle(*members: Member, rounds: int = 6) -> None:
    live = frozenset(member.leases._me for member in members)
    for _ in range(rounds):
        for member in members:
            member.leases.live = live
            await member.leases.tick()


async def test_a_newcomer_gets_its_share(bus: Bus) -> None:
    one, two = Member(bus, "one", 4), Member(bus, "two", 4)
    await settle(one)
    assert one.shards == {0, 1, 2, 3}
    await settle(one, two)
    assert (len(one.shards), len(two.shards)) == (2, 2)
    assert one.shards | two.shards == {0, 1, 2, 3}


async def test_a_dead_owners_shards_move_on(bus: Bus) -> None:
    one, two = Member(bus, "one", 4), Member(bus, "two", 4)
    await settle(one, two)
    for shard in one.shards:  # its leases lapse
        await bus.client.delete(bus.key(f"shard:{shard}:owner"))
    await settle(two)
    assert two.shards == {0, 1, 2, 3}
    await one.leases.tick()  # it was only asleep, and sees that others took over
    assert one.shards == set()


async def test_the_shards_of_an_owner_known_to_be_down_move_on_at_once(bus: Bus) -> None:
    one, two, three = Member(bus, "one", 4), Member(bus, "two", 4), Member(bus, "three", 4)
    await settle(one, two)
    two.leases.down = frozenset(["one"])
    two.leases.live = frozenset(["two"])
    await two.leases.tick()
    assert two.shards == {0, 1, 2, 3}
    three.leases.down = frozenset(["one"])  # a view of before: the shards are in other hands by now
    three.leases.live = frozenset(["three"])
    await three.leases.tick()
    assert three.shards == set()


async def test_a_lease_lapses_by_itself_and_is_renewed_while_alive(bus: Bus) -> None:
    one = Member(bus, "one", 1)
    await one.leases.tick()
    assert 0 < await bus.client.pttl(bus.key("shard:0:owner")) <= 3000
    await bus.client.pexpire(bus.key("shard:0:owner"), 500)
    await one.leases.tick()
    assert await bus.client.pttl(bus.key("shard:0:owner")) > 2000


async def test_stopping_gives_the_shards_back_at_once(bus: Bus) -> None:
    one = Member(bus, "one", 2)
    task = asyncio.create_task(one.leases.run())
    for _ in range(500):
        await asyncio.sleep(0.01)
        if len(one.shards) == 2:
            break
    assert one.shards == {0, 1}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one.shards == set()
    assert await bus.client.exists(bus.key("shard:0:owner"), bus.key("shard:1:owner")) == 0


async def test_every_process_must_count_the_same_shards(bus: Bus) -> None:
    await agree_on_shards(bus, 4)
    await agree_on_shards(bus, 4)
    with pytest.raises(ConfigError, match="is 5 here and 4 in this deployment"):
        await agree_on_shards(bus, 5)


@pytest.mark.parametrize("refused", ["set", "get"])
async def test_a_broker_that_loads_its_data_is_waited_for(
    bus: Bus, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    command = getattr(bus.client, refused)

    async def loading_twice(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked <= 2:
            raise BusyLoadingError("Redis is loading the dataset in memory")
        return await command(*args, **kwargs)

    monkeypatch.setattr(bus.client, refused, loading_twice)
    await agree_on_shards(bus, 4)
    assert asked == 3
    assert await bus.client.get(bus.key("token_shards")) == b"4"
