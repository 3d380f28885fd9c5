"""Processes that run and do nothing."""

import asyncio
import signal
import sys

from services.launcher import watchdog
from services.launcher.plan import ProcessPlan
from services.launcher.process import Child
from shared.messages import Instance
from shared.registry import Registry
from shared.streams import Bus


def an_instance(name: str, silent_s: float, *, is_ready: bool = True) -> Instance:
    return Instance(
        service="tokenizer", instance=name, host="h", pid=1, started_at=0.0, at=100.0 - silent_s, is_ready=is_ready
    )


def test_who_was_ready_and_is_silent_hangs() -> None:
    instances = [an_instance("well", 1), an_instance("hung", 21), an_instance("starting", 21, is_ready=False)]
    assert [one.instance for one in watchdog.hung(instances, 100.0, 20.0)] == ["hung"]


def test_when_nobody_is_heard_it_is_the_broker() -> None:
    assert watchdog.hung([an_instance("one", 21), an_instance("other", 22)], 100.0, 20.0) == []


def test_who_beats_again_before_the_second_look_does_not_hang() -> None:
    watch = watchdog.Watch(20.0)
    after_an_outage = [an_instance("well", 1), an_instance("late", 22), an_instance("hung", 22)]
    assert watch.look(after_an_outage, 100.0) == []
    still = [an_instance("well", 1), an_instance("late", 1), an_instance("hung", 24)]
    assert [one.instance for one in watch.look(still, 100.0)] == ["hung"]


async def test_a_hung_child_is_killed_and_it_is_said(bus: Bus) -> None:
    child = Child(
        ProcessPlan("t-0", "tokenizer", [sys.executable, "-c", "import time; time.sleep(60)"]), lambda *_: None
    )
    await child.start()
    said: list[str] = []
    well = Registry(bus, "gateway", "g-0")
    hung = Registry(bus, "tokenizer", "t-0")
    hung.update(is_ready=True)
    await hung.beat()
    beating = asyncio.create_task(well.run())
    watching = asyncio.create_task(watchdog.watch(well, {"t-0": child}, 1.0, said.append))
    try:
        await asyncio.wait_for(child.wait(), 15)
    finally:
        for task in (beating, watching):
            task.cancel()
        await asyncio.wait([beating, watching])
        await child.stop(0)
    assert child.reason_for_end.startswith(f"killed by signal {signal.SIGKILL}")
    assert said[0].startswith("t-0 runs but was last heard of")
