"""What goes into the scheduler's state machine and what comes out of it, as plain data."""

from dataclasses import dataclass

from shared.messages import Generate, Output, Plan


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request was read. entry_id: what to acknowledge once it has ended."""

    message: Generate
    entry_id: str
    traceparent: str | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class SendPlan:
    worker: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class SendOutput:
    shard: int
    output: Output


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The request of this `schedule` entry has ended."""

    entry_id: str


@dataclass(frozen=True, slots=True)
class Waited:
    """A traced sequence got its place: the material of its `schedule.wait` span."""

    traceparent: str
    request_sequence_id: int
    sequence_id: int
    choice: int
    attempt: int
    since: float
    worker: str
    num_tokens: int
    cached_tokens: int
    num_waiting: int


@dataclass(frozen=True, slots=True)
class ForgetWorker:
    """Nobody reads this worker's plans any more."""

    worker: str


Command = SendPlan | SendOutput | Acknowledge | Waited | ForgetWorker
