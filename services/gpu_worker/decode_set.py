"""Sequences that decode together step after step, and what their steps bring, counted for all of them at once."""

import numpy as np
import numpy.typing as npt

from services.gpu_worker.report import Report
from services.gpu_worker.sequence import Sequence

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_NO_STOP = -2


class DecodeSet:
    """A fixed list of B sequences. Steps are launched and, maybe later, taken: the launched ones count for pages and
    limits, the taken ones for what has been told. While a set is in use, its sequences' own counters stand still;
    `settle` brings them up to date, and from then on no step is launched with it.

    A step brings one token of each, and what is `force`d before it.

    launched, taken: steps of this set so far. seats: int32 [B]. constrained: (row, sequence) of those with a guide."""

    def __init__(self, sequences: list[Sequence]) -> None:
        size = len(sequences)
        self.sequences = sequences
        self.seats: I32 = np.fromiter((one.seat for one in sequences), np.int32, size)
        self.constrained = [(row, one) for row, one in enumerate(sequences) if one.guide is not None]
        self.launched = self.taken = 0
        self._is_settled = False
        self._spoilt: set[int] = set()
        self._until = self._steps_left()
        self._serials = [one.serial for one in sequences]
        self._ids: I64 = np.fromiter((one.id for one in sequences), np.int64, size)
        self._first: I32 = np.fromiter((one.num_sampled for one in sequences), np.int32, size)
        self._forced = np.zeros(size, np.int32)
        self._limits: I32 = np.fromiter((one.max_tokens for one in sequences), np.int32, size)
        self._stop_ids = _stop_ids(sequences)
        shards = [one.shard for one in sequences]
        self._by_shard = [(shard, np.flatnonzero(np.equal(shards, shard))) for shard in sorted(set(shards))]

    def has(self, row: int) -> bool:
        """Whether the row's sequence is still there."""
        return self.sequences[row].serial == self._serials[row]

    def __len__(self) -> int:
        return len(self.sequences)

    def can_step(self) -> bool:
        """Whether every sequence has pages for one more token and may have one more."""
        if self.launched < self._until:
            return True
        self._until = self._steps_left()  # pages may have been granted since
        return self.launched < self._until

    def _steps_left(self) -> int:
        return min((min(one.room, one.max_tokens - one.num_sampled) for one in self.sequences), default=0)

    def force(self, row: int, length: int) -> int:
        """The step launched last, the only one that was not taken, computes a run of so many tokens for the row, ahead
        of the token that it samples: their first index among the row's outputs."""
        assert self.launched == self.taken + 1
        first = int(self._first[row] + self._forced[row]) + self.taken
        self._forced[row] += length
        self._until -= length  # to be looked at again before the pages end
        one = self.sequences[row]
        one.computed += length
        one.num_sampled += length
        return first

    def settle(self) -> None:
        """Brings the sequences' own counters up to what was launched."""
        assert not self._is_settled
        self._is_settled = True
        for i, one in enumerate(self.sequences):
            one.computed += self.launched
            one.num_sampled += self.launched
            one.num_outputs += self.taken - (i in self._spoilt)

    def take(self, tokens: I32, report: Report) -> list[tuple[Sequence, int]]:
        """The tokens [B] of the oldest launched step that was not taken. Tells the report of them; returns those
        that are the last of their sequence or no token at all. Rows of sequences that have gone are dropped."""
        indices = self._first + self._forced + self.taken
        self.taken += 1
        is_over = tokens < 0
        if self._stop_ids is not None:
            is_over |= (tokens[:, None] == self._stop_ids).any(1)
        is_over |= indices + 1 >= self._limits
        counts = tokens >= 0
        if self._is_settled:  # some may have left
            is_there = np.fromiter(
                (one.serial == serial for one, serial in zip(self.sequences, self._serials, strict=True)),
                np.bool_,
                len(self.sequences),
            )
            counts &= is_there
            is_over &= is_there
            for i in np.flatnonzero(counts).tolist():
                self.sequences[i].num_outputs += 1
        else:
            self._spoilt.update(np.flatnonzero(~counts).tolist())
        if counts.all():
            for shard, rows in self._by_shard:
                report.add_tokens(shard, self._ids[rows], indices[rows], tokens[rows])
        else:
            for shard, rows in self._by_shard:
                rows = rows[counts[rows]]
                if len(rows):
                    report.add_tokens(shard, self._ids[rows], indices[rows], tokens[rows])
        return [(self.sequences[i], int(tokens[i])) for i in np.flatnonzero(is_over).tolist()]


def _stop_ids(sequences: list[Sequence]) -> I32 | None:
    """[B, S], rows filled up with what is no token; None if no sequence has any."""
    width = max((len(one.stop_token_ids) for one in sequences), default=0)
    if not width:
        return None
    table = np.full((len(sequences), width), _NO_STOP, np.int32)
    different = {one.stop_token_ids for one in sequences}
    if len(different) == 1:
        table[:] = list(different.pop())
        return table
    for row, one in zip(table, sequences, strict=True):
        row[: len(one.stop_token_ids)] = list(one.stop_token_ids)
    return table
