"""The word that a process has ended."""

import time

from services.launcher.obituary import report_end
from shared.leadership import LOCK, leader_of
from shared.messages import Died
from shared.registry import Registry, missing
from shared.streams import EVENTS, Bus, connect


async def test_a_dead_worker_is_marked_and_its_death_told(bus: Bus) -> None:
    worker = Registry(bus, "gpu_worker", "w-0")
    worker.update(is_ready=True)
    await worker.beat()
    await report_end(bus, "gpu_worker", "w-0")
    (seen,) = await worker.view()
    assert not seen.is_ready
    assert "gpu_worker/w-0 is starting" in missing([seen], time.time())
    told = [delivery.message async for batch in bus.read_log(EVENTS) for delivery in batch]
    assert told == [Died(worker="w-0")]


async def test_a_dead_leaders_lock_is_free_at_once(bus: Bus) -> None:
    await bus.client.set(bus.key(LOCK), "s-10/0123")
    await report_end(bus, "scheduler", "s-1")
    assert await leader_of(bus) == "s-10"
    await report_end(bus, "scheduler", "s-10")
    assert await leader_of(bus) is None


async def test_a_process_that_left_stays_away(bus: Bus) -> None:
    await report_end(bus, "tokenizer", "t-0")
    assert await Registry(bus, "x", "y").view() == []
    assert [batch async for batch in bus.read_log(EVENTS)] == []


async def test_a_broker_that_is_away_holds_nobody_up() -> None:
    client = connect("unix:///nonexistent/broker.sock")
    await report_end(Bus(client, "x"), "gpu_worker", "w-0")
    await client.aclose()
