"""Processes that compile, each with one job at a time; one that takes too long is killed and replaced.

A job's time is the processor's: on a machine that is busy with answers, where these processes come last, a grammar is
no more complex than on an idle one. Smaller jobs overtake larger ones, so that what is quick does not wait for what is
slow; each only so often, so that what is slow has its turn too.
"""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import msgspec

from services.tokenizer.grammar.protocol import OUT_OF_MEMORY, OUT_OF_TIME, Answer, Job, Ready, Refused, Setup
from shared.errors import InternalError, Overloaded, RequestError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
"""A child imports PyTorch and reads a vocabulary, on a machine that may be busy."""

PATIENCE = 4
"""By how much a job may take longer on the clock than it may take of the processor's time."""

LOOK_EVERY_S = 0.25

HEAD_START = 8
"""How many later jobs of half its size overtake a job."""

START_AFTER_S = 2.0
"""The first process is started so long after the service, unless it is needed before: whoever is first to ask for a
constraint is not to wait for PyTorch, and neither is the service's own start."""

STARTS = 2
"""A process may have ended since its last job, killed by the system for its memory: the next one gets the job."""

_answers: "msgspec.msgpack.Decoder[Answer]" = msgspec.msgpack.Decoder(Answer)
_Waiting = tuple[int, int, Job, "asyncio.Future[Answer]"]


def _child(connection: Connection) -> None:
    from services.tokenizer.grammar.child import main  # imports xgrammar, which the service itself does without

    main(connection)


def _processor_s(pid: int | None) -> float:
    """Seconds that the processor has worked for a process. Raises OSError if it is gone."""
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class CompilePool:
    """`run` must be running. `compile` waits for a free process as long as it takes."""

    def __init__(self, setup: Setup, processes: int) -> None:
        self._setup = setup
        self._queue: asyncio.PriorityQueue[_Waiting] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._children = [Child() for _ in range(processes)]
        self._threads = ThreadPoolExecutor(processes, "compile")

    async def compile(self, job: Job) -> Answer:
        """Raises InternalError if no process can be started, Overloaded if one was hardly given any time."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._queue.put_nowait((number + HEAD_START * len(job.source).bit_length(), number, job, future))
        return await future

    @property
    def num_waiting(self) -> int:
        return self._queue.qsize()

    async def run(self) -> None:
        """Hands out jobs until cancelled; leaves no process behind."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for child in self._children:
                    tasks.create_task(self._serve(child))
                await asyncio.sleep(START_AFTER_S)
                await self._start_first()
        finally:
            for child in self._children:
                child.kill()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, child: "Child") -> None:
        loop = asyncio.get_running_loop()
        while True:
            _, _, job, future = await self._queue.get()
            if future.done():  # nobody waits for it any more
                continue
            try:
                answer = await loop.run_in_executor(self._threads, self._do, child, job)
            except RequestError as error:
                if not future.done():
                    future.set_exception(error)
                continue
            except asyncio.CancelledError:
                future.cancel()
                raise
            except Exception:  # one job may not end the work on all others
                log.exception("compiling a constraint")
                if not future.done():
                    future.set_exception(InternalError("the grammar could not be compiled"))
                continue
            if not future.done():
                future.set_result(answer)

    async def _start_first(self) -> None:
        if any(child.is_alive for child in self._children):
            return
        with contextlib.suppress(InternalError):  # told to whoever needs it
            await asyncio.get_running_loop().run_in_executor(self._threads, self._start, self._children[0])

    def _start(self, child: "Child") -> None:
        """In a thread of the pool. Raises InternalError."""
        with child.lock:
            if not child.is_alive:
                ready = child.start(self._setup)
                self._setup = msgspec.structs.replace(self._setup, tokenizer=b"", tokenizer_info=ready.tokenizer_info)

    def _do(self, child: "Child", job: Job) -> Answer:
        """In a thread of the pool."""
        for _ in range(STARTS):
            self._start(child)
            with contextlib.suppress(_Gone):
                return child.do(job, self._setup.timeout_s)
        raise InternalError("the processes that compile grammars end before they get to it")


class _Gone(Exception):
    """The process had ended before it got its job."""


class Child:
    """One process, or the place for one. lock: held by who starts it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        return self._process is not None

    def start(self, setup: Setup) -> Ready:
        """Raises InternalError if the process does not come up."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["services.tokenizer.grammar.child"])
        ours, theirs = context.Pipe()
        process = context.Process(target=_child, args=(theirs,), name="compile", daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection = process, ours
        if self._is_closed:
            self.kill()
        try:
            ours.send_bytes(msgspec.msgpack.encode(setup))
            if not ours.poll(START_TIMEOUT_S):
                raise TimeoutError
            return msgspec.msgpack.decode(ours.recv_bytes(), type=Ready)
        except (OSError, EOFError, msgspec.DecodeError) as error:
            if not self._is_closed:  # else it was ended with the service
                log.error("a compiling process did not start: %r", error)
            self._drop()
            raise InternalError("no process to compile the grammar could be started") from None

    def do(self, job: Job, timeout_s: float) -> Answer:
        """The process's answer, or why there is none. timeout_s: of the processor's time. Raises Overloaded if the
        process did not get so much, _Gone if it had ended before."""
        connection, process = self._connection, self._process
        assert connection is not None
        assert process is not None
        start = time.monotonic()
        try:
            begin = _processor_s(process.pid)
            connection.send_bytes(msgspec.msgpack.encode(job))
        except OSError as error:
            log.warning("a compiling process has ended: %r", error)
            self._drop()
            raise _Gone from None
        try:
            while not connection.poll(min(LOOK_EVERY_S, timeout_s / 4)):
                if _processor_s(process.pid) - begin > timeout_s:
                    log.warning("a compiling process took more than %g s and was killed", timeout_s)
                    self._drop()
                    return Refused(message=OUT_OF_TIME)
                if time.monotonic() - start > PATIENCE * timeout_s:
                    log.warning("a compiling process got little to do its work with and was killed")
                    self._drop()
                    raise Overloaded("The machine is too busy to compile the grammar; try again.", retry_after_s=5)
            answer = _answers.decode(connection.recv_bytes())
        except (OSError, EOFError) as error:  # it is gone: by its limit of memory, or a crash that only it died of
            log.warning("a compiling process ended over a grammar: %r", error)
            self._drop()
            return Refused(message=OUT_OF_MEMORY)
        if answer.is_last:
            self._drop()
        return answer

    def kill(self) -> None:
        """Also ends what a thread waits for. No other process takes this one's place."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    def _drop(self) -> None:
        process, connection = self._process, self._connection
        assert process is not None
        assert connection is not None
        self._process = self._connection = None
        with contextlib.suppress(OSError):
            connection.close()
        process.kill()
        process.join()
        process.close()
