"""The thread that owns the model: takes plans, steps, hands out reports."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from services.gpu_worker import metrics
from services.gpu_worker.engine import Engine
from services.gpu_worker.profiler import Profiler
from services.gpu_worker.report import Report
from shared.messages import Plan

log = logging.getLogger(__name__)

NAME = "engine"
IDLE_TURN_S = 0.25
"""How often an idle engine shows that it lives."""
PREPARING_TURN_S = 0.02
"""How long an engine that prepares for rarer steps leaves the interpreter to the event loop in between."""
MAX_FAILURES = 3
"""So many steps in a row that fail, and the process ends: what supervises it may start a better one."""


class EngineThread:
    """Plans go in by `put`; reports come out, in order, as calls of `on_report` in the event loop's thread.

    make_engine: loads the model; runs in the thread, which is the only one that touches the model.
    ready: done when the engine is made; over: done when the thread is. Both raise what ended it. The thread is a
    daemon: one that hangs does not keep the process from ending."""

    def __init__(
        self, make_engine: Callable[[], Engine], on_report: Callable[[Report], None], profiler: Profiler | None = None
    ) -> None:
        self._profiler = profiler or Profiler()
        self._loop = asyncio.get_running_loop()
        self._make_engine = make_engine
        self._on_report = on_report
        self._changed = threading.Condition()
        self._plans: list[Plan] = []
        self._is_stopping = False
        self._is_idle = self._is_woken = self._is_preparing = False
        self._failures = 0
        self._turned_at = time.monotonic()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, plan: Plan) -> None:
        """Hands over a plan; wakes the engine if it is idle."""
        with self._changed:
            self._plans.append(plan)
            self._changed.notify()

    def wake(self) -> None:
        """Something that the engine waits for has come."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    async def stop(self, patience_s: float) -> bool:
        """Ends the thread after the step that it is in; whether it ended in time. Raises nothing that it raised."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        await asyncio.wait([self.over], timeout=patience_s)
        return self.over.done()

    @property
    def silent_s(self) -> float:
        """Seconds since the engine last took a turn: the age of the step that it is in."""
        return time.monotonic() - self._turned_at

    def _run(self) -> None:
        ended_by: BaseException | None = None
        try:
            engine = self._make_engine()
            self._call(_resolve, self.ready, None)
            while self._turn(engine):
                pass
        except BaseException as error:  # handed on: whatever ends this thread ends the process
            ended_by = error
        self._call(_resolve, self.ready, ended_by)
        self._call(_resolve, self.over, ended_by)

    def _turn(self, engine: Engine) -> bool:
        """Applies the plans that came and computes a step; False when told to stop."""
        plans = self._take_plans()
        if plans is None:
            return False
        try:
            for plan in plans:
                engine.apply(plan)
            self._step(engine)
        except Exception:  # any failure of a step: the sequences are lost here, but not to the scheduler
            log.exception("a step failed; starting afresh")
            metrics.FAILED_STEPS.inc()
            self._failures += 1
            self._deliver(engine)
            if self._failures >= MAX_FAILURES:
                raise
            engine.reset()
        self._deliver(engine)
        return True

    def _take_plans(self) -> list[Plan] | None:
        """The plans that came, after waiting for one if there is nothing else to do; None when told to stop."""
        with self._changed:
            has_call = self._plans or self._is_stopping or self._is_woken
            if self._is_idle and not has_call:
                self._changed.wait(PREPARING_TURN_S if self._is_preparing else IDLE_TURN_S)
            self._is_woken = False
            self._turned_at = time.monotonic()
            plans, self._plans = self._plans, []
            return None if self._is_stopping else plans

    def _step(self, engine: Engine) -> None:
        started = time.perf_counter()
        if self._profiler.is_wanted and not self._is_idle:
            self._profiler.before_step()
        size = engine.step()
        self._is_idle = size is None
        self._profiler.after_step(has_computed=size is not None)
        if size is None:
            self._is_preparing = engine.prepare()
            return
        self._failures = 0
        metrics.STEPS.inc()
        metrics.STEP_SECONDS.observe(time.perf_counter() - started)
        metrics.PREFILL_TOKENS.inc(size.num_prefill)
        metrics.DECODE_TOKENS.inc(size.num_decode)

    def _deliver(self, engine: Engine) -> None:
        report = engine.take_report()
        if report is None:
            return
        metrics.PREFILLING.set(engine.num_prefilling)
        metrics.DECODING.set(engine.num_decoding)
        metrics.STALLED.set(engine.num_stalled)
        self._call(self._on_report, report)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending and nobody waits
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: "asyncio.Future[None]", error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # seen: a process that is stopping need not look at it again
