"""The engine's thread: how fast it wakes, what ends it."""

import asyncio
import statistics
import time
from collections.abc import Callable

import pytest

from services.gpu_worker.engine import Engine
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.report import Report
from shared.messages import Plan
from tests.services.gpu_worker.fake_runner import FakeRunner


def an_engine(runner: FakeRunner) -> Callable[[], Engine]:
    return lambda: Engine(StepExecutor(runner, 64), 64, time.time)


async def test_a_plan_wakes_an_idle_engine_at_once() -> None:
    reports: asyncio.Queue[Report] = asyncio.Queue()
    thread = EngineThread(an_engine(FakeRunner()), reports.put_nowait)
    thread.start()
    epoch = (await asyncio.wait_for(reports.get(), 5)).epoch
    delays = []
    for number in range(1, 31):
        await asyncio.sleep(0.01)
        started = time.perf_counter()
        thread.put(Plan(epoch=epoch, number=number, commands=[]))
        report = await asyncio.wait_for(reports.get(), 5)
        delays.append(time.perf_counter() - started)
        assert report.applied == number
    assert await thread.stop(5)
    # To the engine and back. A tenth of that on a quiet machine; on a busy one, so fast sometimes.
    assert statistics.quantiles(delays, n=10)[0] < 0.005


async def test_an_idle_engine_shows_that_it_lives() -> None:
    thread = EngineThread(an_engine(FakeRunner()), lambda report: None)
    thread.start()
    await thread.ready
    await asyncio.sleep(0.6)
    async with asyncio.timeout(5):
        while thread.silent_s > 0.4:  # noqa: ASYNC110 - a busy machine may keep it from its turn for a while
            await asyncio.sleep(0.01)
    assert await thread.stop(5)


async def test_what_ends_the_thread_is_handed_on() -> None:
    def make_engine() -> Engine:
        raise SystemError("no such device")

    thread = EngineThread(make_engine, lambda report: None)
    thread.start()
    for future in (thread.ready, thread.over):
        with pytest.raises(SystemError, match="no such device"):
            await asyncio.wait_for(future, 5)
    assert await thread.stop(5)
