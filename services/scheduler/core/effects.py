"""What goes into the scheduler's state machine and what comes out of it, as plain data."""

from dataclasses import dataclass

from shared.messages import Ended, Generate, Output, Plan


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request was read. entry_id: what to acknowledge once it has ended. is_replayed: another scheduler may have had
    it before us."""

    message: Generate
    entry_id: str
    traceparent: str | None = None
    deadline: float | None = None
    is_replayed: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the shards say, in answer to `ReadShards` of the same worker and epoch. outputs: each sequence's output
    tokens from the first on, int32 bytes; opened: those that somebody still waits for."""

    worker: str
    epoch: int
    outputs: dict[int, bytes]
    ended: dict[int, Ended]
    opened: frozenset[int]


@dataclass(frozen=True, slots=True)
class Deaf:
    """Nothing could be heard since the last events: nobody's silence means anything."""


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
class Quarantine:
    """As Acknowledge, and the request is kept among the dead letters, because it kills workers."""

    entry_id: str
    why: str


@dataclass(frozen=True, slots=True)
class ReadShards:
    """Find out what was told of these sequences, by shard. is_fenced: first let nothing more of the worker's epoch
    count; otherwise it may still write."""

    worker: str
    epoch: int
    sequences: dict[int, list[int]]
    is_fenced: bool


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
    """The plans that this worker has not read are void."""

    worker: str


Command = SendPlan | SendOutput | Acknowledge | Quarantine | ReadShards | Waited | ForgetWorker
