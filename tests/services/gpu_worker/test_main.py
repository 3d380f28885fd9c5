"""The whole worker on a real broker, with a model that shows every mistake as a wrong token."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from msgspec import structs

from services.gpu_worker import main as worker_main
from services.gpu_worker import reporter
from services.gpu_worker.config import Settings
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.main import EngineHung, serve
from services.gpu_worker.step import SequenceStep
from shared import grammar
from shared.errors import ConfigError
from shared.grammar import CompiledGrammar
from shared.messages import (
    Admit,
    Drop,
    Ended,
    FinishReason,
    Goodbye,
    Grant,
    Hello,
    Holdings,
    Open,
    Output,
    Plan,
    Progress,
    Retract,
    Sampling,
)
from shared.packing import pack_i32, unpack_i32, unpack_i64
from shared.registry import Registry
from shared.service import Context
from shared.streams import EVENTS, Bus, FromWorker, plan_stream, shard_stream
from tests.services.gpu_worker.fake_runner import FakeRunner, expected_outputs
from tests.services.gpu_worker.grammar import toy

WORKER = "w1"
SETTINGS = Settings(model_path="/models/tiny-hash", max_running=40, chunked_prefill_size=8)


class GatedRunner(FakeRunner):
    """Stands still in a step while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, steps: Sequence[SequenceStep]) -> torch.Tensor:
        assert self.gate.wait(30)
        return super().forward(steps)


@dataclass
class Scheduler:
    """The other end: sends plans, reads events."""

    bus: Bus
    task: "asyncio.Task[None]"
    number: int = 0
    cursor: str = "0"
    events: list[FromWorker] = field(default_factory=list)

    async def until(self, condition: Callable[[], object], patience_s: float = 10) -> None:
        """Reads events until the condition holds."""
        async with asyncio.timeout(patience_s):
            async for batch in self.bus.follow(lambda: {EVENTS: self.cursor}, block_s=0.05):
                for delivery in batch:
                    self.events.append(delivery.message)
                    self.cursor = delivery.entry_id
                if condition():
                    return

    def plan(self, *commands: Admit | Grant | Drop | Retract) -> None:
        self.number += 1
        self.bus.outbox.post(
            plan_stream(WORKER), Plan(epoch=self.hellos[-1].epoch, number=self.number, commands=list(commands))
        )

    @property
    def hellos(self) -> list[Hello]:
        return [event for event in self.events if isinstance(event, Hello)]

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self.events if isinstance(event, Progress)]

    def tokens(self, sequence_id: int) -> list[int]:
        return [
            token
            for one in self.progress
            for owner, token in zip(unpack_i64(one.sequence_ids), unpack_i32(one.token_ids), strict=True)
            if owner == sequence_id
        ]

    def ended(self, sequence_id: int) -> Ended | None:
        ends = [end for one in self.progress for end in one.ended if end.sequence_id == sequence_id]
        assert len(ends) <= 1
        return ends[0] if ends else None


@contextlib.asynccontextmanager
async def a_worker(bus: Bus, runner: FakeRunner, settings: Settings = SETTINGS) -> AsyncIterator[Scheduler]:
    context = Context("gpu_worker", WORKER, bus, Registry(bus, "gpu_worker", WORKER))
    task = asyncio.create_task(serve(context, settings, lambda _, limits: StepExecutor(runner, limits.max_running)))
    scheduler = Scheduler(bus, task)
    try:
        await scheduler.until(lambda: scheduler.hellos)
        yield scheduler
    finally:
        task.cancel()
        await asyncio.wait([task])


def an_admit(sequence_id: int, prompt: list[int], pages: Sequence[int], max_tokens: int, shard: int = 0) -> Admit:
    return Admit(
        sequence_id=sequence_id,
        shard=shard,
        token_ids=pack_i32(prompt),
        num_prompt=len(prompt),
        cached=0,
        page_table=pack_i32(pages),
        sampling=Sampling(temperature=0.0),
        stop_token_ids=[],
        max_tokens=max_tokens,
    )


async def entries(bus: Bus, shard: int) -> list[Open | Output]:
    stream = shard_stream(shard)
    async for batch in bus.follow(lambda: {stream: "0"}, block_s=0.05):
        return [delivery.message for delivery in batch]
    raise AssertionError


async def test_a_request_from_plan_to_tokens(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        hello = scheduler.hellos[0]
        assert hello == Hello(
            worker=WORKER,
            epoch=hello.epoch,
            model="tiny-hash",
            num_pages=64,
            page_size=4,
            max_model_len=200,
            max_running=40,
            prefill_budget=8,
        )
        assert abs(hello.epoch - time.time() * 1000) < 60_000
        scheduler.plan(an_admit(1, [1, 2, 3], range(8), 20, shard=2), an_admit(2, [4] * 20, range(8, 20), 6, shard=3))
        await scheduler.until(lambda: scheduler.ended(1) and scheduler.ended(2))
        assert scheduler.tokens(1) == expected_outputs([1, 2, 3], 20)
        assert scheduler.tokens(2) == expected_outputs([4] * 20, 6)
        assert scheduler.progress[-1].applied == 1
        outputs = await entries(bus, 2)
        tokens, ends = [], []
        for output in outputs:
            assert isinstance(output, Output)
            tokens += unpack_i32(output.token_ids)
            ends += output.ended
        assert tokens == expected_outputs([1, 2, 3], 20)
        assert ends == [scheduler.ended(1)]
        assert await entries(bus, 3)
        await asyncio.sleep(1.2)  # the next heartbeat
        (instance,) = await Registry(bus, "test", "test").view()
        assert (instance.is_ready, instance.model, instance.max_model_len) == (True, "tiny-hash", 200)


async def test_a_lease_runs_on_without_messages_and_stalls_at_its_end(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(1, [1, 2], [0, 1, 2], 30))
        await scheduler.until(lambda: scheduler.progress and scheduler.progress[-1].stalled)
        assert len(scheduler.tokens(1)) == 11
        scheduler.plan(Grant(sequence_id=1, pages=pack_i32(range(3, 12))))
        await scheduler.until(lambda: scheduler.ended(1))
        assert scheduler.tokens(1) == expected_outputs([1, 2], 30)


async def test_a_new_scheduler_is_told_what_the_worker_holds_and_an_old_one_is_heeded_no_more(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        epoch = scheduler.hellos[0].epoch
        scheduler.plan(an_admit(1, [1, 2], [0, 1, 2], 30), an_admit(2, [3], [3], 2))
        await scheduler.until(lambda: scheduler.ended(2) and scheduler.progress[-1].stalled)
        bus.outbox.post(plan_stream(WORKER), Plan(epoch=epoch, number=0, commands=[], term=7))
        await scheduler.until(lambda: isinstance(scheduler.events[-1], Holdings))
        said, told = scheduler.events[-1], scheduler.progress[-1]
        assert isinstance(said, Holdings)
        assert said.hello == scheduler.hellos[0]
        assert (said.applied, said.number) == (1, told.number)
        (held,) = said.sequences
        assert (held.sequence_id, held.num_outputs, list(unpack_i32(held.page_table))) == (1, 11, [0, 1, 2])
        old = Plan(epoch=epoch, number=2, commands=[Drop(sequence_ids=[1])], term=6)
        new = Plan(epoch=epoch, number=2, commands=[Grant(sequence_id=1, pages=pack_i32(range(4, 12)))], term=7)
        bus.outbox.post(plan_stream(WORKER), old)
        bus.outbox.post(plan_stream(WORKER), new)
        await scheduler.until(lambda: scheduler.ended(1))
        assert scheduler.tokens(1) == expected_outputs([1, 2], 30)
        assert [one.number for one in scheduler.progress] == list(range(1, len(scheduler.progress) + 1))
        assert len(scheduler.hellos) == 1


async def test_retract_is_answered_after_the_last_token(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(1, [1, 2], range(40), 150))
        await scheduler.until(lambda: scheduler.tokens(1))
        scheduler.plan(Retract(sequence_ids=[1]))
        await scheduler.until(lambda: any(one.retracted for one in scheduler.progress) or scheduler.ended(1))
        count = len(scheduler.tokens(1))
        scheduler.plan(an_admit(2, [5], [60], 2))
        await scheduler.until(lambda: scheduler.ended(2))
        assert len(scheduler.tokens(1)) == count
        assert scheduler.tokens(1) == expected_outputs([1, 2], count)


async def test_what_the_engine_applied_leaves_the_plan_stream(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        for i in range(5):
            scheduler.plan(an_admit(i, [i + 1], [i], 1))
        await scheduler.until(lambda: scheduler.ended(4))
        for _ in range(50):
            await asyncio.sleep(0.1)
            if await bus.client.xlen(bus.key(f"plan:{WORKER}")) == 1:
                return
        raise AssertionError("the plan stream keeps what was applied")


async def test_plans_that_nobody_will_read_go_away_by_themselves(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "PLANS_RENEWED_S", 0.05)
    key = bus.key(plan_stream(WORKER).name)
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(1, [1, 2], [0, 1, 2], 30))
        async with asyncio.timeout(5):
            while await bus.client.ttl(key) < 0:  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.05)
        assert reporter.PLANS_KEPT_S - 5 < await bus.client.ttl(key) <= reporter.PLANS_KEPT_S


async def test_a_leftover_plan_stream_is_not_obeyed(bus: Bus) -> None:
    bus.outbox.post(plan_stream(WORKER), Plan(epoch=2**50, number=1, commands=[an_admit(1, [1], [0], 5)]))
    await bus.outbox.flush()
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(2, [2], [1], 2))
        await scheduler.until(lambda: scheduler.ended(2))
        assert len(scheduler.hellos) == 1
        assert scheduler.tokens(1) == []


async def test_a_gap_brings_a_new_hello(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(1, [1, 2], [0, 1], 30))
        await scheduler.until(lambda: scheduler.progress and scheduler.progress[-1].stalled)
        scheduler.number += 1
        scheduler.plan(an_admit(2, [1, 2], [4, 5], 2))
        await scheduler.until(lambda: len(scheduler.hellos) == 2)
        assert scheduler.hellos[1].epoch > scheduler.hellos[0].epoch
        scheduler.number = 0
        scheduler.plan(an_admit(3, [1, 2], [0, 1], 2))
        await scheduler.until(lambda: scheduler.ended(3))
        assert scheduler.tokens(2) == []
        assert scheduler.progress[-1].stalled == b""


async def test_an_idle_worker_gives_signs_of_life_that_repeat_who_is_stalled(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(1, [1, 2], [0], 30))
        await scheduler.until(lambda: scheduler.progress and scheduler.progress[-1].stalled)
        before = len(scheduler.progress)
        await scheduler.until(lambda: len(scheduler.progress) >= before + 2, patience_s=3)
        assert [list(unpack_i64(one.stalled)) for one in scheduler.progress[before:]] == [[1], [1]]
        assert {one.applied for one in scheduler.progress[before:]} == {1}


async def test_a_hung_step_ends_the_worker(bus: Bus) -> None:
    runner = GatedRunner()
    settings = Settings(model_path="/models/tiny-hash", step_timeout_s=0.4)
    async with a_worker(bus, runner, settings) as scheduler:
        runner.gate.clear()
        scheduler.plan(an_admit(1, [1, 2], [0], 3))
        asyncio.get_running_loop().call_later(2.5, runner.gate.set)  # so that the thread ends with the test
        with pytest.raises(EngineHung):
            await asyncio.wait_for(asyncio.shield(scheduler.task), 10)


async def test_one_failed_step_begins_a_new_epoch(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    async with a_worker(bus, runner) as scheduler:
        runner.failures = 1
        scheduler.plan(an_admit(1, [1, 2], [0, 1], 3))
        await scheduler.until(lambda: len(scheduler.hellos) == 2)
        assert "the device fell off" in caplog.text
        scheduler.number = 0
        scheduler.plan(an_admit(1, [1, 2], [0, 1], 3))
        await scheduler.until(lambda: scheduler.ended(1))
        assert scheduler.tokens(1) == expected_outputs([1, 2], 3)


async def test_steps_that_fail_again_and_again_end_the_worker(bus: Bus) -> None:
    runner = FakeRunner()
    async with a_worker(bus, runner) as scheduler:
        runner.failures = 3
        for hellos in (2, 3):
            scheduler.number = 0
            scheduler.plan(an_admit(1, [1, 2], [0, 1], 3))
            await scheduler.until(lambda hellos=hellos: len(scheduler.hellos) == hellos)  # type: ignore[misc]
        scheduler.number = 0
        scheduler.plan(an_admit(1, [1, 2], [0, 1], 3))
        with pytest.raises(RuntimeError, match="the device fell off"):
            await asyncio.wait_for(asyncio.shield(scheduler.task), 10)


async def test_stopping_says_goodbye_after_the_last_tokens(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner()) as scheduler:
        scheduler.plan(an_admit(1, [1, 2], range(50), 180))
        await scheduler.until(lambda: scheduler.tokens(1))
        scheduler.task.cancel()
        await asyncio.wait([scheduler.task])
        await scheduler.until(lambda: isinstance(scheduler.events[-1], Goodbye))
        count = len(scheduler.tokens(1))
        assert scheduler.tokens(1) == expected_outputs([1, 2], count)
        shard_tokens = [
            t for one in await entries(bus, 0) if isinstance(one, Output) for t in unpack_i32(one.token_ids)
        ]
        assert len(shard_tokens) == count
        assert not await bus.client.exists(bus.key(f"plan:{WORKER}"))


async def test_stopping_does_not_wait_for_ever_for_a_step(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_main, "STOP_PATIENCE_S", 0.2)
    runner = GatedRunner()
    async with a_worker(bus, runner) as scheduler:
        runner.gate.clear()
        scheduler.plan(an_admit(1, [1, 2], [0], 3))
        await asyncio.sleep(0.1)
        scheduler.task.cancel()
        started = time.monotonic()
        await asyncio.wait([scheduler.task], timeout=5)
        assert time.monotonic() - started < 2
        runner.gate.set()
        await scheduler.until(lambda: isinstance(scheduler.events[-1], Goodbye))


async def test_a_model_that_cannot_be_loaded_ends_the_worker_with_its_reason(bus: Bus) -> None:
    def load(_settings: object, _limits: object) -> StepExecutor:
        raise ConfigError("no config.json in /nowhere")

    context = Context("gpu_worker", WORKER, bus, Registry(bus, "gpu_worker", WORKER))
    with pytest.raises(ConfigError, match="no config"):
        await asyncio.wait_for(serve(context, SETTINGS, load), 10)
    assert await bus.client.xlen(bus.key("events")) == 0


async def test_many_sequences_at_once_each_get_their_own_tokens(bus: Bus) -> None:
    async with a_worker(bus, FakeRunner(num_pages=200)) as scheduler:
        prompts = {i: [i % 97, 3 * i % 97, 5] for i in range(40)}
        for i, prompt in prompts.items():
            scheduler.plan(an_admit(i, prompt, range(4 * i, 4 * i + 4), 10, shard=i % 3))
        await scheduler.until(lambda: all(scheduler.ended(i) for i in prompts))
        for i, prompt in prompts.items():
            assert scheduler.tokens(i) == expected_outputs(prompt, 10)
            assert scheduler.ended(i) == Ended(sequence_id=i, reason=FinishReason.LENGTH, num_tokens=10)


PROGRAM = """
import threading
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.main import main
from tests.services.gpu_worker.fake_runner import FakeRunner

class Hangs(FakeRunner):
    def forward(self, steps):
        if self.calls:
            threading.Event().wait()
        return super().forward(steps)

main(lambda settings, limits: StepExecutor(Hangs(), limits.max_running))
"""


async def test_sigterm_in_the_middle_of_a_step_ends_the_process_cleanly(bus: Bus, broker_url: str) -> None:
    environment = os.environ | {
        "SAPWOOD_REDIS_URL": broker_url,
        "SAPWOOD_KEY_PREFIX": bus.prefix,
        "SAPWOOD_INSTANCE": WORKER,
        "SAPWOOD_MODEL_PATH": "/models/tiny-hash",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scheduler = Scheduler(bus, asyncio.ensure_future(done))  # type: ignore[arg-type]
        await scheduler.until(lambda: scheduler.hellos, patience_s=60)
        scheduler.plan(an_admit(1, [1, 2], [0], 3))
        await scheduler.until(lambda: len(scheduler.progress) > 1)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
        assert b"Traceback" not in errors
        await scheduler.until(lambda: isinstance(scheduler.events[-1], Goodbye))
        assert await Registry(bus, "test", "test").view() == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_grammar_is_fetched_and_one_that_is_gone_ends_its_sequence_alone(bus: Bus, tmp_path: Path) -> None:
    toy.save(tmp_path)
    compiled = toy.compiler().compile_regex("[ab]{3}(the ){4}")
    record = CompiledGrammar(engine="xgrammar", serialized=compiled.serialize_json().encode())
    await bus.client.set(bus.key("grammar:there"), grammar.encode(record))
    runner = FakeRunner(vocab_size=toy.vocabulary().vocab_size)
    async with a_worker(bus, runner, structs.replace(SETTINGS, model_path=str(tmp_path))) as scheduler:
        admits = [an_admit(i, [5 + i, 6], range(10 * i, 10 * i + 10), 20) for i in range(3)]
        scheduler.plan(
            structs.replace(admits[0], grammar="grammar:gone"),
            structs.replace(admits[1], grammar="grammar:there"),
            admits[2],
        )
        await scheduler.until(lambda: all(scheduler.ended(i) for i in range(3)), patience_s=60)
        gone, there, free = (scheduler.ended(i) for i in range(3))
        assert gone is not None and gone.error is not None and gone.error.status == 503
        assert there is not None and there.reason is FinishReason.STOP
        assert re.fullmatch("[ab]{3}(the ){4}", toy.text_of(scheduler.tokens(1)))
        assert free is not None and free.reason is FinishReason.LENGTH
