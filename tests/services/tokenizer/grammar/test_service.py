"""Constraints through a whole tokenizer process on a real broker: compiled, kept, joined, refused, bounded."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xgrammar

from services.tokenizer.config import Settings
from services.tokenizer.grammar import child as child_module
from services.tokenizer.grammar import pool as pool_module
from services.tokenizer.grammar import service as service_module
from services.tokenizer.grammar.pool import CompilePool
from services.tokenizer.grammar.protocol import FAILED, Job, Refused, Setup
from services.tokenizer.grammar.service import GrammarService
from services.tokenizer.grammar.store import GrammarStore
from services.tokenizer.model_files import ModelFiles
from shared.errors import InvalidRequest, Overloaded
from shared.grammar import INDEX_KEY, SIZES_KEY, decode, tokenizer_info
from shared.messages import Constraint
from shared.streams import Bus
from tests.services.tokenizer.conftest import FolderMaker
from tests.services.tokenizer.grammar.random_walk import Walker
from tests.services.tokenizer.test_service import TRACEPARENT, World

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def regex(source: str) -> Constraint:
    return Constraint(kind="regex", source=source, param="regex")


@pytest.fixture
async def world(bus: Bus, broker_url: str, make_folder: FolderMaker) -> AsyncIterator[World]:
    world = World(bus, broker_url, make_folder())
    yield world
    await world.stop_all()


@pytest.fixture
async def grammars(bus: Bus, model: ModelFiles) -> AsyncIterator[GrammarService]:
    service = GrammarService(bus, model, Settings(model_path=".", grammar_processes=1, grammar_compile_timeout_s=3))
    task = asyncio.create_task(service.run())
    yield service
    task.cancel()
    await asyncio.wait([task])


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_the_first_process_is_there_before_anybody_asks(
    bus: Bus, model: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "START_AFTER_S", 0.0)
    service = GrammarService(bus, model, Settings(model_path=".", grammar_processes=2))
    task = asyncio.create_task(service.run())
    first, second = service._pool._children
    for _ in range(600):
        if not first.is_alive:
            await asyncio.sleep(0.05)
    assert first._process is not None
    pid = first._process.pid
    assert pid is not None
    assert not second.is_alive
    task.cancel()
    await asyncio.wait([task])
    for _ in range(200):
        if not is_there(pid):
            break
        await asyncio.sleep(0.05)
    assert not is_there(pid)


async def test_a_request_names_its_grammar_and_its_choices_share_it(world: World, model: ModelFiles) -> None:
    await world.start("one")
    constraint = Constraint(kind="json_schema", source=json.dumps(SCHEMA), param="response_format")
    world.ask("r", constraint=constraint, n=2, traceparent=TRACEPARENT)
    await world.until(world.generates)
    [generate] = await world.generates()
    assert len(generate.sequence_ids) == 2
    value = await world.bus.client.get(world.bus.key(generate.grammar))
    assert value is not None
    record = decode(value)
    info = tokenizer_info(model.backend, model.vocab_size, list(model.eos_token_ids))
    grammar = xgrammar.CompiledGrammar.deserialize_json(record.serialized.decode(), info)
    matcher = xgrammar.GrammarMatcher(grammar)
    assert matcher.accept_string('{"a": 5')
    assert not matcher.accept_string("x")
    assert matcher.accept_string("}")


async def test_free_requests_do_not_wait_for_those_that_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    compile_ = CompilePool.compile

    async def slow(self: CompilePool, job: Job) -> Any:
        await gate.wait()
        return await compile_(self, job)

    monkeypatch.setattr(CompilePool, "compile", slow)
    await world.start("one")
    for number in range(100):
        world.ask(f"c{number}", constraint=regex(f"a{{{number}}}"))
    world.ask("free")
    await world.until(world.generates)
    assert [generate.request_id for generate in await world.generates()] == ["free"]
    gate.set()

    async def all_there() -> bool:
        return len(await world.generates()) == 101

    await world.until(all_there)
    assert await world.pending() == (0, 0)


async def test_small_jobs_overtake_a_large_one_but_not_for_ever() -> None:
    setup = Setup(tokenizer=b"", vocab_size=1, stop_token_ids=[], memory_bytes=1, timeout_s=1.0, max_characters=1)
    pool = CompilePool(setup, 1)  # which does not run
    sources = ["x" * 100_000, *(f"a{{{number}}}" for number in range(500))]
    tasks = [asyncio.create_task(pool.compile(Job(kind="regex", source=source))) for source in sources]
    await asyncio.sleep(0)
    order = [(await pool._queue.get())[2].source for _ in sources]
    assert 10 < order.index(sources[0]) < 200
    for task in tasks:
        task.cancel()


async def test_a_process_that_ended_between_two_jobs_is_replaced(grammars: GrammarService) -> None:
    await grammars.compile(regex("a+"))
    (child,) = grammars._pool._children
    assert child._process is not None and child._process.pid is not None
    os.kill(child._process.pid, signal.SIGKILL)
    await asyncio.to_thread(child._process.join)
    for source in ("b+", "c+"):
        await grammars.compile(regex(source))


async def test_a_bad_grammar_is_refused_and_names_its_field(world: World) -> None:
    await world.start("one")
    world.ask("r", constraint=Constraint(kind="regex", source="(", param="structured_outputs.regex"))
    world.ask("s", constraint=Constraint(kind="magic", source="(", param="x"))
    world.ask("late", constraint=regex("abc"), deadline=time.time() - 1)
    await world.until(lambda: len(world.rejected) == 3)
    error = world.rejected["r"].error
    assert (error.status, error.param) == (400, "structured_outputs.regex")
    assert "'structured_outputs.regex'" in error.message
    assert world.rejected["s"].error.status == 400
    assert world.rejected["late"].error.code == "timeout"


def test_a_fault_of_the_compiler_refuses_one_job(monkeypatch: pytest.MonkeyPatch, walker: Walker) -> None:
    setup = Setup(tokenizer=b"", vocab_size=1, stop_token_ids=[], memory_bytes=1, timeout_s=1.0, max_characters=1)

    def fails(*_: object) -> str:
        raise ArithmeticError("a fault")

    monkeypatch.setattr(child_module, "to_source", fails)
    compiler = xgrammar.GrammarCompiler(walker.info, max_threads=1)
    assert child_module._answer(Job(kind="regex", source="a"), compiler, setup) == Refused(message=FAILED)


async def test_equal_constraints_are_compiled_once(grammars: GrammarService, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    compile_ = CompilePool.compile

    async def counted(self: CompilePool, job: Job) -> Any:
        jobs.append(job)
        return await compile_(self, job)

    monkeypatch.setattr(CompilePool, "compile", counted)
    first = await asyncio.gather(*(grammars.compile(regex("a+")) for _ in range(5)))
    again = await grammars.compile(regex("a+"))
    other = await grammars.compile(Constraint(kind="choice", source='["a+"]', param="choice"))
    assert len({grammar.key for grammar in [*first, again]}) == 1
    assert other.key != again.key
    assert len(jobs) == 2


async def test_one_who_gives_up_does_not_take_it_from_the_others(grammars: GrammarService) -> None:
    impatient = asyncio.create_task(grammars.compile(regex("b+")))
    patient = asyncio.create_task(grammars.compile(regex("b+")))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).key


async def test_failures_are_remembered_for_a_while(grammars: GrammarService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "FAILURE_TTL_S", 0.3)
    with pytest.raises(InvalidRequest):
        await grammars.compile(regex("("))
    with monkeypatch.context() as patch:
        patch.setattr(CompilePool, "compile", None)  # would be an error
        with pytest.raises(InvalidRequest, match="'guided_regex'"):
            await grammars.compile(Constraint(kind="regex", source="(", param="guided_regex"))
    await asyncio.sleep(0.4)
    with pytest.raises(InvalidRequest):
        await grammars.compile(regex("("))


async def test_too_many_waiting_are_turned_away(grammars: GrammarService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "_max_waiting", 1)
    first = asyncio.create_task(grammars.compile(regex("c+")))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await grammars.compile(regex("d+"))
    same = await grammars.compile(regex("c+"))
    assert (await first).key == same.key


async def test_a_grammar_that_no_time_was_given_for_is_not_called_too_complex(
    grammars: GrammarService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grammars.compile(regex("first"))
    [child] = grammars._pool._children
    monkeypatch.setattr(grammars._pool, "_setup", msgspec.structs.replace(grammars._pool._setup, timeout_s=0.2))
    os.kill(child._process.pid, signal.SIGSTOP)
    with pytest.raises(Overloaded):
        await grammars.compile(regex("second"))
    monkeypatch.undo()
    assert (await grammars.compile(regex("second"))).key


async def test_a_grammar_that_takes_too_long_is_refused(
    grammars: GrammarService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grammars.compile(regex("first"))
    monkeypatch.setattr(grammars._pool, "_setup", msgspec.structs.replace(grammars._pool._setup, timeout_s=0.3))
    monkeypatch.setattr(pool_module, "PATIENCE", 1000)  # however busy the machine of the test is
    names = [f"{place:03}" + "x" * 40 for place in range(20_000)]
    with pytest.raises(InvalidRequest, match="takes longer"):
        await grammars.compile(Constraint(kind="choice", source=json.dumps(names), param="choice"))


async def test_the_store_drops_what_was_used_longest_ago(bus: Bus) -> None:
    store = GrammarStore(bus, 250)
    for name in ("a", "b"):
        await store.put(f"grammar:{name}", b"x" * 100)
    assert await store.touch("grammar:a")
    assert await store.put("grammar:c", b"x" * 100) == 200
    assert [await store.touch(f"grammar:{name}") for name in "abc"] == [True, False, True]
    assert await store.put("grammar:big", b"x" * 1000) == 1000
    assert await bus.client.zrange(bus.key(INDEX_KEY), 0, -1) == [b"grammar:big"]
    assert await bus.client.hkeys(bus.key(SIZES_KEY)) == [b"grammar:big"]
    assert 0 < await bus.client.ttl(bus.key("grammar:big")) <= 24 * 3600


async def test_the_store_forgets_what_expired(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.tokenizer.grammar.store.KEEP_S", 1)
    store = GrammarStore(bus, 10_000)
    await store.put("grammar:a", b"x" * 100)
    await asyncio.sleep(1.1)
    assert not await store.touch("grammar:a")
    assert await store.put("grammar:b", b"x") == 1
