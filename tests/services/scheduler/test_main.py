"""The scheduler's I/O, over a real broker: what one leaves, the next one takes over."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from services.scheduler.core.scheduler import Scheduler, make_policy
from services.scheduler.leader import Leadership
from services.scheduler.main import Desk
from services.scheduler.metrics import Exporter
from shared.errors import BusError
from shared.messages import Generate, Held, Hello, Holdings, Plan, Progress, Sampling
from shared.packing import pack_i32
from shared.streams import EVENTS, SCHEDULE, Bus, plan_stream, shard_stream
from tests.services.scheduler.test_shards import an_open, an_output

HELLO = Hello(
    worker="w", epoch=5, model="m", num_pages=8, page_size=4, max_model_len=32, max_running=4, prefill_budget=8
)


@pytest.fixture
async def core(bus: Bus) -> AsyncIterator[Scheduler]:
    """A scheduler's core at work on the bus."""
    core = Scheduler(lambda: make_policy("lpm", 1.0), term=3)
    leadership = Leadership(bus, "scheduler-1")
    await leadership.acquire()
    desk = Desk(bus, core, leadership, "scheduler-1", checks_ledger=True)
    await bus.outbox.flush()
    bus.answered_at = 0.0
    loops = [desk.read_reports(), desk.read_requests(), desk.read_shards(), desk.run(Exporter())]
    tasks = [asyncio.create_task(loop) for loop in loops]
    await eventually(lambda: bus.answered_at > 0)  # it hears from now on
    yield core
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.02)


def a_request(bus: Bus) -> None:
    """Sequence 7, three tokens of prompt, in shard 1."""
    bus.outbox.post(shard_stream(1), an_open(7))
    bus.outbox.post(
        SCHEDULE,
        Generate(
            request_id="r",
            sequence_ids=[7],
            shard=1,
            token_ids=pack_i32([1, 2, 3]),
            sampling=Sampling(temperature=0.0),
            max_tokens=20,
        ),
    )


@pytest.fixture
async def bus_with_a_request(bus: Bus) -> Bus:
    """As an earlier scheduler left it: read and not acknowledged, five tokens of output told."""
    a_request(bus)
    bus.outbox.post(shard_stream(1), an_output(*((7, index, 10 + index) for index in range(5)), epoch=5))
    await bus.outbox.flush()
    async for _ in bus.groups.read(SCHEDULE, "scheduler-0"):
        break
    return bus


async def plans(bus: Bus) -> list[Plan]:
    await bus.outbox.flush()
    return [delivery.message async for batch in bus.read_log(plan_stream("w")) for delivery in batch]


async def test_a_workers_sequence_goes_on_under_a_new_scheduler(bus_with_a_request: Bus, core: Scheduler) -> None:
    bus = bus_with_a_request
    await eventually(lambda: 7 in core.sequences)
    bus.outbox.post(EVENTS, Progress(worker="w", epoch=5, applied=9, at=0.0, number=40))
    async with asyncio.timeout(10):
        while not await plans(bus):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await plans(bus) == [Plan(epoch=5, number=0, commands=[], term=3)]
    held = Held(sequence_id=7, num_outputs=5, page_table=pack_i32([3, 1]))
    bus.outbox.post(EVENTS, Holdings(hello=HELLO, applied=9, number=41, sequences=[held]))
    await eventually(lambda: "w" in core.workers)
    sequence = core.workers["w"].running[7]
    assert (sequence.num_output, sequence.pages[:2]) == (5, [3, 1])
    assert (await plans(bus))[-1].number in (0, 10), "plans go on where the worker is"


async def test_a_sequence_that_no_worker_holds_is_started_again_with_its_output(
    bus_with_a_request: Bus, core: Scheduler
) -> None:
    bus = bus_with_a_request
    bus.outbox.post(EVENTS, HELLO)
    await eventually(lambda: "w" in core.workers and 7 in core.workers["w"].running)
    assert core.workers["w"].running[7].num_output == 5


async def test_who_comes_back_under_the_same_name_leads_at_once_and_in_a_later_term(bus: Bus) -> None:
    first, second, other = Leadership(bus, "a"), Leadership(bus, "a"), Leadership(bus, "b")
    term = await first.acquire()
    began = time.monotonic()
    assert await second.acquire() > term
    assert time.monotonic() - began < 1
    waiting = asyncio.create_task(other.acquire())
    await asyncio.sleep(0.7)
    assert not waiting.done()
    await first.release()  # not the holder any more
    await asyncio.sleep(0.7)
    assert not waiting.done()
    await second.release()
    assert await asyncio.wait_for(waiting, 2) > term


async def test_what_an_earlier_leader_reads_after_its_time_is_not_lost(bus: Bus, core: Scheduler) -> None:
    stale = bus.groups.read(SCHEDULE, "scheduler-0")
    taken = asyncio.ensure_future(anext(stale))
    await asyncio.sleep(0.1)
    for _ in range(4):
        a_request(bus)
    await taken
    bus.outbox.post(EVENTS, HELLO)
    await eventually(lambda: 7 in core.sequences)


async def test_a_leader_that_was_stopped_for_long_makes_sure_before_it_goes_on(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leadership, "TTL_S", 0.2)
    first, other = Leadership(bus, "a"), Leadership(bus, "b")
    term = await first.acquire()
    assert first.is_sure
    await asyncio.sleep(0.25)
    assert not first.is_sure
    await first.confirm()  # nobody has led meanwhile
    assert first.is_sure
    await asyncio.sleep(0.25)
    assert await other.acquire() > term
    with pytest.raises(BusError, match="another scheduler leads"):
        await first.confirm()
    await other.release()
    with pytest.raises(BusError, match="another scheduler leads"):
        await first.confirm()  # what the other one decided is not known here


async def test_a_leader_whose_time_is_over_decides_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leadership, "TTL_S", 0.2)
    core, leadership = Scheduler(lambda: make_policy("lpm", 1.0), term=3), Leadership(bus, "a")
    await leadership.acquire()
    desk = Desk(bus, core, leadership, "a")
    a_request(bus)
    reading = asyncio.create_task(desk.read_requests())
    await asyncio.sleep(0.25)
    await Leadership(bus, "b").acquire()
    with pytest.raises(BusError, match="another scheduler leads"):
        await desk.run(Exporter())
    assert not core.sequences
    reading.cancel()
