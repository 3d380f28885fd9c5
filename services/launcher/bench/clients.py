"""Drives several client processes, so that the client is not what limits a run."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

import msgspec

from services.launcher.bench.client import Share, Target, client_main, split
from services.launcher.bench.figures import Answer
from services.launcher.bench.workloads import Session
from shared.errors import ConfigError

START_S = 0.05  # from the word to start until the first request

_decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode


def run_clients(
    sessions: Sequence[Session], target: Target, num_processes: int, progress: Callable[[Sequence[Answer]], None]
) -> list[Answer]:
    """Every answer. `target.concurrency` is that of all processes together; `progress` hears of answers as they come.
    Raises ConfigError when a client process ends before its work does."""
    parts = split(sessions, min(num_processes, target.concurrency))
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    answers: list[Answer] = []
    try:
        for index, part in enumerate(parts):
            at_once = target.concurrency // len(parts) + (index < target.concurrency % len(parts))
            share = Share(msgspec.structs.replace(target, concurrency=at_once), part)
            ours, theirs = context.Pipe()
            process = context.Process(target=client_main, args=(theirs, msgspec.msgpack.encode(share)), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        _start_together(pipes)
        for batch in _batches(pipes):
            answers += batch
            progress(batch)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
        for pipe in pipes:
            pipe.close()
    expected = sum(len(session.asks) for session in sessions)
    if len(answers) != expected:
        raise ConfigError(f"a client process ended early: {len(answers)} of {expected} requests were answered")
    return answers


def _start_together(pipes: Sequence[Connection]) -> None:
    """Lets the processes begin when all of them are up. Raises ConfigError when one does not come up."""
    try:
        for pipe in pipes:
            pipe.recv_bytes()
        starts_at = time.perf_counter() + START_S
        for pipe in pipes:
            pipe.send_bytes(repr(starts_at).encode())
    except (EOFError, OSError):
        raise ConfigError("a client process did not start; what it said is above") from None


def _batches(pipes: Sequence[Connection]) -> Iterator[list[Answer]]:
    """What comes through the pipes, until all of them are closed on the other side."""
    is_open = list(pipes)
    while is_open:
        for pipe in wait(is_open):
            assert isinstance(pipe, Connection)
            try:
                yield _decode_answers(pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                is_open.remove(pipe)
