"""CPU time of the scheduler per request, without broker and model: messages in as bytes, plans out as bytes.

    python benchmarks/scheduler_cpu.py [--load agent,crowd] [--profile] [--repeat 3]

agent: 64 conversations of 6 turns behind 2,048 tokens that all share; a turn sends the whole conversation and 192 new
tokens, and gets 64. crowd: 2,000 requests, 512 at once, 2,000 shared tokens and 64 of their own, 32 out.
A worker in miniature prefills 4,096 tokens a step beside those that decode and reports every step. Times are CPU
times of the thread; the digest is of all that was decided, so that two versions can be seen to decide the same.
"""

import argparse
import contextlib
import cProfile
import hashlib
import pstats
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from services.scheduler.core.effects import Arrived, SendPlan
from services.scheduler.core.scheduler import Event, Scheduler, make_policy
from shared.heap import settle_heap
from shared.messages import Admit, Drop, Ended, FinishReason, Generate, Grant, Hello, Plan, Progress, Retract, Sampling
from shared.packing import pack_i32, pack_i64
from shared.streams import EVENTS, SCHEDULE

VOCABULARY = 48_000
PREFILL_BUDGET = 4096
STEP_S = 0.008
ARRIVALS_AT_ONCE = 8

Session = Iterator[tuple[list[int], int]]
"""The requests of one client, one after another, as (prompt, output tokens). The output does not depend on anything."""


def agent(rng: random.Random) -> list[Session]:
    tools = [rng.randrange(VOCABULARY) for _ in range(2048)]

    def conversation() -> Session:
        history = list(tools)
        for _ in range(6):
            history = history + [rng.randrange(VOCABULARY) for _ in range(192)]
            yield history, 64
            history = history + [output_token(i) for i in range(64)]

    return [conversation() for _ in range(64)]


def crowd(rng: random.Random) -> list[Session]:
    system = [rng.randrange(VOCABULARY) for _ in range(2000)]

    def client(requests: int) -> Session:
        for _ in range(requests):
            yield system + [rng.randrange(VOCABULARY) for _ in range(64)], 32

    return [client(4) for _ in range(500)]


LOADS = {"agent": agent, "crowd": crowd}


def output_token(index: int) -> int:
    return 7 + 13 * index % VOCABULARY


@dataclass
class Clock:
    """CPU seconds by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        started = time.thread_time()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.thread_time() - started


@dataclass
class Running:
    admit: Admit
    left: int
    outputs: int


class Worker:
    """Computes nothing and reports as if it had."""

    def __init__(self) -> None:
        self.running: dict[int, Running] = {}
        self.number = self.applied = 0

    def apply(self, plan: Plan) -> None:
        self.applied = plan.number
        for command in plan.commands:
            match command:
                case Admit():
                    num_tokens = len(command.token_ids) // 4
                    self.running[command.sequence_id] = Running(
                        command, num_tokens - command.cached, num_tokens - command.num_prompt
                    )
                case Drop() | Retract():
                    for sequence_id in command.sequence_ids:
                        self.running.pop(sequence_id, None)
                case Grant():
                    pass

    def step(self) -> Progress:
        budget = PREFILL_BUDGET
        computed: list[tuple[int, int]] = []
        tokens: list[tuple[int, int]] = []
        ended = []
        for sequence_id, running in list(self.running.items()):
            if running.left:
                count = min(budget, running.left)
                budget -= count
                running.left -= count
                if running.left:
                    if count:
                        computed.append((sequence_id, len(running.admit.token_ids) // 4 - running.left))
                    continue
            tokens.append((sequence_id, running.outputs))
            running.outputs += 1
            if running.outputs == running.admit.max_tokens:
                ended.append(Ended(sequence_id=sequence_id, reason=FinishReason.LENGTH, num_tokens=running.outputs))
                del self.running[sequence_id]
        self.number += 1
        return Progress(
            worker="w",
            epoch=1,
            applied=self.applied,
            at=0.0,
            number=self.number,
            computed_ids=pack_i64(i for i, _ in computed),
            computed=pack_i32(c for _, c in computed),
            sequence_ids=pack_i64(i for i, _ in tokens),
            indices=pack_i32(i for _, i in tokens),
            token_ids=pack_i32(output_token(i) for _, i in tokens),
            ended=ended,
        )


class Run:
    """One load from its first request to its last."""

    def __init__(self, sessions: list[Session], at_once: int) -> None:
        self.clock = Clock()
        self.core = Scheduler(lambda: make_policy("lpm", 200.0))
        self.worker = Worker()
        self.sessions = deque(sessions)
        self.at_once = at_once
        self.active: dict[int, Session] = {}
        self.requests = self.steps = self.tokens = 0
        self.now = 1.0
        self.digest = hashlib.blake2b(digest_size=8)
        self.encoder = msgspec.msgpack.Encoder()

    def run(self) -> None:
        hello = Hello(
            worker="w",
            epoch=1,
            model="m",
            num_pages=30_000,
            page_size=16,
            max_model_len=8192,
            max_running=512,
            prefill_budget=8192,
        )
        self.apply([hello], "join")
        firsts = [self.request(self.sessions.popleft()) for _ in range(min(self.at_once, len(self.sessions)))]
        messages = [one for one in firsts if one is not None]
        while messages or self.worker.running or self.core.sequences:
            for at in range(0, len(messages), ARRIVALS_AT_ONCE):
                bodies = [self.encoder.encode(one) for one in messages[at : at + ARRIVALS_AT_ONCE]]
                with self.clock.on("decode requests"):
                    requests = [SCHEDULE.decode(body) for body in bodies]
                self.apply(
                    [Arrived(one, f"{one.request_id}-0") for one in requests if isinstance(one, Generate)],
                    "take requests",
                )
            report = self.worker.step()
            self.steps += 1
            self.tokens += len(report.indices) // 4
            body = self.encoder.encode(report)
            self.now += STEP_S
            with self.clock.on("decode reports"):
                decoded = EVENTS.decode(body)
            self.apply([decoded], "take reports")
            messages = []
            for ended in report.ended:
                session = self.active.pop(ended.sequence_id)
                message = self.request(session)
                if message is None and self.sessions:
                    message = self.request(self.sessions.popleft())
                if message is not None:
                    messages.append(message)

    def request(self, session: Session) -> Generate | None:
        turn = next(session, None)
        if turn is None:
            return None
        prompt, max_tokens = turn
        self.requests += 1
        self.active[self.requests] = session
        return Generate(
            request_id=str(self.requests),
            sequence_ids=[self.requests],
            shard=self.requests % 4,
            token_ids=pack_i32(prompt),
            sampling=Sampling(),
            max_tokens=max_tokens,
            arrival=self.now,
        )

    def apply(self, events: Sequence[Event], what: str) -> None:
        with self.clock.on(what):
            commands = self.core.apply(events, self.now)
        for command in commands:
            if isinstance(command, SendPlan):
                with self.clock.on("encode plans"):
                    body = self.encoder.encode(command.plan)
                self.digest.update(body)
                self.worker.apply(command.plan)
            else:
                self.digest.update(repr(command).encode())

    def report(self, name: str) -> None:
        total = sum(self.clock.seconds.values())
        parts = ", ".join(f"{what} {seconds / self.requests * 1e6:.0f}" for what, seconds in self.clock.seconds.items())
        print(
            f"{name}: {total / self.requests * 1e6:.0f} us a request ({parts}); {self.requests} requests, "
            f"{self.steps} steps, {total / self.tokens * 1e6:.2f} us a token, "
            f"cached {self.core.num_cached_tokens / self.core.num_prompt_tokens:.3f}, {self.digest.hexdigest()}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", default=",".join(LOADS))
    parser.add_argument("--repeat", type=int, default=3, help="the fastest is shown")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    settle_heap()
    for name in options.load.split(","):
        runs = []
        for _ in range(options.repeat):
            run = Run(LOADS[name](random.Random(1)), 512)
            profiler = cProfile.Profile() if options.profile else None
            if profiler:
                profiler.enable()
            run.run()
            if profiler:
                profiler.disable()
                pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
            run.core.check_integrity()
            runs.append(run)
        min(runs, key=lambda run: sum(run.clock.seconds.values())).report(name)


if __name__ == "__main__":
    main()
