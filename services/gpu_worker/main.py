"""GPU worker service: leases in, tokens out. The I/O around the engine."""

import asyncio
import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from services.gpu_worker import engine_thread, metrics
from services.gpu_worker.config import Limits, Settings, resolve
from services.gpu_worker.control import follow_control
from services.gpu_worker.engine import Engine
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.executor import Executor
from services.gpu_worker.grammar.library import GrammarLibrary
from services.gpu_worker.grammar.vocabulary import Vocabulary, load_vocabulary
from services.gpu_worker.load import load_executor
from services.gpu_worker.profiler import Profiler
from services.gpu_worker.reporter import Reporter
from shared.errors import ConfigError
from shared.heap import settle_heap
from shared.messages import HEARTBEAT_S, Admit, Hello
from shared.service import Context, run_service
from shared.streams import Bus, control_stream, plan_stream

log = logging.getLogger(__name__)

STOP_PATIENCE_S = 5.0
"""How long a stopping worker waits for the step that it is in."""

GIL_SWITCH_S = 0.0002
"""How long the event loop may keep the engine waiting for the interpreter, which it gives up and takes again several
times a step."""

Load = Callable[[Settings, Limits], Executor]


class EngineHung(Exception):
    """A step has taken longer than `step_timeout_s`."""


async def serve(context: Context, settings: Settings, load: Load = load_executor) -> None:
    """Loads the model, says hello, and follows the scheduler's plans until cancelled."""
    limits = resolve(settings)
    executor: Executor | None = None

    def make_engine() -> Engine:
        nonlocal executor
        executor = load(settings, limits)
        executor.warm_up()
        return Engine(
            executor,
            limits.prefill_budget,
            time.time,
            grammars,
            mixed_budget=limits.mixed_budget,
            forces_runs=settings.forced_runs,
        )

    def vocabulary() -> Vocabulary:
        assert executor is not None
        return load_vocabulary(settings.model_path, executor.vocab_size)

    def hello(epoch: int) -> Hello:
        assert executor is not None
        return Hello(
            worker=context.instance,
            epoch=epoch,
            model=settings.model_name,
            num_pages=executor.num_pages,
            page_size=executor.page_size,
            max_model_len=executor.max_model_len,
            max_running=limits.max_running,
            prefill_budget=limits.prefill_budget,
        )

    reporter = Reporter(context.bus, context.instance, settings.model_name, hello)
    profiler = _profiler(settings)
    engine = EngineThread(make_engine, reporter.take, profiler)
    grammars = GrammarLibrary(context.bus, vocabulary, engine.wake, settings.grammar_memory_mb << 20)
    context.bus.outbox.delete(plan_stream(context.instance))
    await context.bus.outbox.flush()
    # What is asked from now on is for this process.
    asked = await context.bus.newest_id(control_stream(context.instance))
    tasks = [asyncio.create_task(context.registry.run(), name="registry")]
    engine.start()
    try:
        await _until_first([engine.ready, *tasks])
        assert executor is not None
        metrics.PAGES.set(executor.num_pages)
        settle_heap()
        context.registry.update(is_ready=True, model=settings.model_name, max_model_len=executor.max_model_len)
        grammars.warm_up()
        tasks += [
            asyncio.create_task(_follow(context.bus, context.instance, engine, reporter, grammars), name="plans"),
            asyncio.create_task(_keep(engine, reporter, settings.step_timeout_s), name="heartbeat"),
            asyncio.create_task(
                follow_control(context.bus, context.instance, asked, profiler, Path(settings.profile_file)),
                name="control",
            ),
        ]
        await _until_first([engine.over, *tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await grammars.close()
        if not await engine.stop(STOP_PATIENCE_S if engine.ready.done() else 0):
            log.warning("stopping in the middle of a step")
        reporter.farewell()


def _profiler(settings: Settings) -> Profiler:
    """Raises ConfigError when the trace that was asked for at the start cannot be made."""
    profiler = Profiler()
    if settings.profile_steps:
        try:
            profiler.request(settings.profile_steps, Path(settings.profile_file))
        except ValueError as error:
            raise ConfigError(f"profile: {error}") from None
    return profiler


async def _until_first(futures: "Sequence[asyncio.Future[None]]") -> None:
    """Returns when the first is done; raises what it raised."""
    done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


async def _follow(bus: Bus, worker: str, engine: EngineThread, reporter: Reporter, grammars: GrammarLibrary) -> None:
    """Hands plans to the engine as they come; has the grammars that they name fetched meanwhile."""
    stream = plan_stream(worker)
    cursors = {stream: "0"}
    async for deliveries in bus.follow(lambda: cursors):
        for delivery in deliveries:
            for command in delivery.message.commands:
                if isinstance(command, Admit) and command.grammar:
                    grammars.want(command.grammar)
            engine.put(delivery.message)
            reporter.note_read(delivery)
            cursors[stream] = delivery.entry_id


async def _keep(engine: EngineThread, reporter: Reporter, step_timeout_s: float) -> None:
    """Signs of life, as long as the engine itself gives them. Raises EngineHung."""
    while True:
        for _ in range(2):
            await asyncio.sleep(HEARTBEAT_S / 2)
            if engine.silent_s > step_timeout_s:
                raise EngineHung(f"the engine has been in one step for {engine.silent_s:.0f} s")
            reporter.beat()
        reporter.trim()


def main(load: Load = load_executor) -> None:
    sys.setswitchinterval(GIL_SWITCH_S)
    code: int | str | None = 0
    try:
        run_service("gpu_worker", Settings, functools.partial(serve, load=load))
    except SystemExit as stop:
        code = stop.code
    except Exception:
        traceback.print_exc()
        code = 1
    if any(thread.name == engine_thread.NAME for thread in threading.enumerate()):
        # A model that is in the middle of something can neither be interrupted nor be there while the interpreter
        # is taken apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)
