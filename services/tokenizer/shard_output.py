"""One token shard's log, read in order: what it says of sequences becomes replies to their gateways. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.tokenizer.decode import Detokenizer
from services.tokenizer.sequence import SequenceOutput
from shared.errors import Unavailable
from shared.messages import Delta, Deltas, Fence, Finished, Open, Output
from shared.packing import unpack_i32, unpack_i64

ENDED_KEPT = 1 << 16
"""Sequence ids remembered after their end, so that a request delivered again does not open them again."""

FENCES_KEPT = 4096
"""Epochs of workers whose late output is told apart."""

GATEWAY_GONE_S = 20.0
"""Sequences of a gateway that was not heard of for so long are cancelled, unless somebody else wants them. Longer than
a heartbeat's lapse: a gateway that was stopped for a moment finds its requests as they were."""

GAP_S = 10.0
"""What is missing between tokens that are there comes within this time, or never."""

DEADLINE_GRACE_S = 60.0
"""A sequence is given up that long after its deadline."""

SILENCE_S = 3600.0
"""A sequence without a deadline is given up after so long without a token."""

_NONE: frozenset[int] = frozenset()


@dataclass(slots=True)
class Replies:
    """What a batch of entries leads to."""

    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    finished: dict[str, list[Finished]] = field(default_factory=dict)
    aborts: list[int] = field(default_factory=list)
    over: list[SequenceOutput] = field(default_factory=list)

    def by_gateway(self) -> dict[str, Deltas]:
        """One message a gateway."""
        gateways = dict.fromkeys([*self.deltas, *self.finished])
        return {
            gateway: Deltas(deltas=self.deltas.get(gateway, []), finished=self.finished.get(gateway, []))
            for gateway in gateways
        }


class ShardOutput:
    """The sequences in flight of one shard. cursor: the last entry read."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self.cursor = "0"
        self._detokenizer = detokenizer
        self._sequences: dict[int, SequenceOutput] = {}  # in the order of their `Open`
        self._touched: dict[int, SequenceOutput] = {}
        self._ended: dict[int, None] = {}
        self._gaps: dict[int, tuple[int, float]] = {}  # sequence -> tokens before its gap, and since when
        self._fenced: dict[tuple[str, int], None] = {}  # (worker, epoch) whose output counts no more

    def __len__(self) -> int:
        """Sequences in flight."""
        return len(self._sequences)

    def open(
        self, message: Open, entry_id: str, now: float, traceparent: str | None = None, deadline: float | None = None
    ) -> None:
        """Starts a request's sequences, unless they are there or were."""
        for sequence_id in message.sequence_ids:
            if sequence_id in self._sequences or sequence_id in self._ended:
                continue
            self._sequences[sequence_id] = SequenceOutput(
                self._detokenizer,
                message,
                sequence_id,
                entry_id=entry_id,
                now=now,
                traceparent=traceparent,
                deadline=deadline,
            )

    def fence(self, message: Fence) -> None:
        """Ignores from now on what this worker's epoch writes."""
        self._fenced[message.worker, message.epoch] = None
        if len(self._fenced) > FENCES_KEPT:
            del self._fenced[next(iter(self._fenced))]

    def output(self, message: Output, now: float) -> int:
        """Takes a step's tokens and ends; those of unknown sequences are ignored. Returns how many tokens came.
        Raises ValueError, having taken nothing, when the arrays do not fit each other."""
        if (message.worker, message.epoch) in self._fenced:
            return 0
        sequence_ids = unpack_i64(message.sequence_ids)
        indices, token_ids = unpack_i32(message.indices), unpack_i32(message.token_ids)
        cached_ids, cached = unpack_i64(message.cached_ids), unpack_i32(message.cached)
        forced = frozenset(unpack_i32(message.forced)) if message.forced else _NONE
        if not len(sequence_ids) == len(indices) == len(token_ids) or len(cached_ids) != len(cached):
            raise ValueError("arrays of different lengths")
        sequences, touched = self._sequences, self._touched
        for sequence_id, cached_tokens in zip(cached_ids, cached, strict=True):
            if sequence_id in sequences:
                sequences[sequence_id].cached_tokens = cached_tokens
        for place, (sequence_id, index, token_id) in enumerate(zip(sequence_ids, indices, token_ids, strict=True)):
            sequence = sequences.get(sequence_id)
            if sequence is None:
                continue
            if sequence_id not in touched:
                touched[sequence_id] = sequence
                sequence.last_heard_at = now
                if sequence.first_token_at is None:
                    sequence.first_token_at = now
            sequence.push(index, token_id, place in forced)
        for ended in message.ended:
            sequence = sequences.get(ended.sequence_id)
            if sequence is not None:
                sequence.end(ended)
                touched[ended.sequence_id] = sequence
        return len(token_ids)

    def take(self, replies: Replies) -> None:
        """Adds to `replies` what came since the last call, and forgets the sequences that are over."""
        touched, self._touched = self._touched, {}
        for sequence in touched.values():
            gateway = sequence.open.reply_to
            deltas = sequence.take_deltas()
            if deltas:
                replies.deltas.setdefault(gateway, []).extend(deltas)
            if sequence.finished is not None:
                replies.finished.setdefault(gateway, []).append(sequence.finished)
                replies.over.append(sequence)
                if sequence.was_cut:
                    replies.aborts.append(sequence.sequence_id)
                self._forget(sequence)

    def orphans(self, now: float, gateways: Mapping[str, float]) -> list[SequenceOutput]:
        """Sequences whose gateway is gone without a word. gateways: when each was last heard of."""
        return [
            sequence
            for sequence in self._sequences.values()
            if now - max(gateways.get(sequence.open.reply_to, 0.0), sequence.opened_at) > GATEWAY_GONE_S
        ]

    def late(self, now: float) -> list[SequenceOutput]:
        """Sequences long past their deadline or long silent, which nobody will end."""
        return [sequence for sequence in self._sequences.values() if self._is_late(sequence, now)]

    def torn(self, now: float) -> list[SequenceOutput]:
        """Sequences of whose output a part is missing that will not come: the broker has lost it. To be asked
        regularly."""
        gaps = {one.sequence_id: one for one in self._sequences.values() if one.has_gap}
        self._gaps = {
            sequence_id: self._gaps[sequence_id]
            if self._gaps.get(sequence_id, (-1, now))[0] == sequence.num_tokens
            else (sequence.num_tokens, now)
            for sequence_id, sequence in gaps.items()
        }
        return [gaps[sequence_id] for sequence_id, (_, since) in self._gaps.items() if now - since > GAP_S]

    def cancel(self, sequences: Iterable[SequenceOutput], reason: str) -> None:
        """Ends sequences that are in flight with a 503: they are aborted, and should their gateway yet live it is
        told."""
        for sequence in sequences:
            sequence.fail(Unavailable(reason, retry_after_s=1).body())
            sequence.was_cut = True
            self._touched[sequence.sequence_id] = sequence

    def is_in_flight(self, sequence: SequenceOutput) -> bool:
        return self._sequences.get(sequence.sequence_id) is sequence

    def oldest_needed(self) -> str:
        """The id of the oldest entry that another reader would need: all before it may be trimmed."""
        return next((sequence.entry_id for sequence in self._sequences.values()), self.cursor)

    @staticmethod
    def _is_late(sequence: SequenceOutput, now: float) -> bool:
        if sequence.finished is not None:
            return False
        if sequence.deadline is not None:
            return now > sequence.deadline + DEADLINE_GRACE_S
        return now > sequence.last_heard_at + SILENCE_S

    def _forget(self, sequence: SequenceOutput) -> None:
        del self._sequences[sequence.sequence_id]
        self._touched.pop(sequence.sequence_id, None)
        self._ended[sequence.sequence_id] = None
        if len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
