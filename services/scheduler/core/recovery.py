"""Who is between two places: sequences without a known worker, and workers that are to say what they hold."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.scheduler.core.effects import ReadShards
from services.scheduler.core.sequence import Phase, Sequence
from shared.messages import Held, Holdings, Progress

SETTLE_S = 1.5
"""How long a sequence that a worker may hold waits for that worker's word: longer than between two signs of life."""

ASK_AGAIN_S = 2.0


@dataclass(slots=True)
class Relearning:
    """A worker that was asked what it holds. reports: what it said after that."""

    epoch: int
    asked_at: float
    holdings: Holdings | None = None
    reports: list[Progress] = field(default_factory=list)

    def held(self) -> dict[int, Held]:
        assert self.holdings is not None
        return {held.sequence_id: held for held in self.holdings.sequences}


class Recovery:
    """unplaced: sequences that some worker may hold. relearning: by worker. Of others it is being read in the shards
    what they have said; those are known by the worker and epoch that `ReadShards` names."""

    def __init__(self) -> None:
        self.unplaced: dict[int, Sequence] = {}
        self.relearning: dict[str, Relearning] = {}
        self._asked: dict[tuple[str, int], dict[int, Sequence]] = {}
        self._sweeps = 0

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.sequence_id in self.unplaced or any(
            sequence.sequence_id in asked for asked in self._asked.values()
        )

    def put(self, sequence: Sequence, now: float) -> None:
        """Lets the sequence wait for the word of a worker that has it."""
        sequence.phase = Phase.LOST
        sequence.waiting_since = now
        self.unplaced[sequence.sequence_id] = sequence

    def forget(self, sequence: Sequence) -> None:
        self.unplaced.pop(sequence.sequence_id, None)
        for asked in self._asked.values():
            asked.pop(sequence.sequence_id, None)

    def read(self, worker: str, epoch: int, sequences: Iterable[Sequence], *, is_fenced: bool) -> ReadShards:
        """What to ask of the shards about these sequences."""
        asked = self._asked.setdefault((worker, epoch), {})
        by_shard: dict[int, list[int]] = {}
        for sequence in sequences:
            sequence.phase = Phase.LOST
            asked[sequence.sequence_id] = sequence
            by_shard.setdefault(sequence.request.shard, []).append(sequence.sequence_id)
        return ReadShards(worker, epoch, by_shard, is_fenced)

    def claim(self, holdings: Holdings) -> ReadShards:
        """Asks about those sequences that a worker says it holds and that are looked for."""
        claimed = [self.unplaced.pop(held.sequence_id, None) for held in holdings.sequences]
        sequences = [sequence for sequence in claimed if sequence is not None]
        return self.read(holdings.hello.worker, holdings.hello.epoch, sequences, is_fenced=False)

    def sweep(self, now: float) -> ReadShards | None:
        """Asks about those that no worker has spoken for in time."""
        due = [sequence for sequence in self.unplaced.values() if now - sequence.waiting_since > SETTLE_S]
        if not due:
            return None
        for sequence in due:
            del self.unplaced[sequence.sequence_id]
        self._sweeps += 1
        return self.read("", self._sweeps, due, is_fenced=False)

    def answered(self, worker: str, epoch: int) -> list[Sequence]:
        """The sequences that an answer is about, but for those that have ended since."""
        return list(self._asked.pop((worker, epoch), {}).values())
