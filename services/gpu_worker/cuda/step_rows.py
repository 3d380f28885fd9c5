"""The rows of a step in fixed device buffers: sequences that decode first, then the tokens of chunks in prefill.

A graph that was captured for N rows serves every step of up to N: rows without a sequence compute token 0 and write
nothing. What chunks need (tokens, positions, parts and tiles of their attention) comes from the host, all of it in one
copy; what sequences that decode need is gathered from their seats on the device. Runs that are known to follow their
newest tokens become chunks behind these, which the device adds by itself.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.cuda.runs import DeviceRuns
from services.gpu_worker.cuda.seats import Seats
from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.executor import Chunk
from services.gpu_worker.grammar.prediction import NO_ROOM, NOWHERE, Guesses, Room
from services.gpu_worker.kernels.begin_step import GIVEN_ROWS, LOGIT_ROWS, begin_step
from services.gpu_worker.kernels.extend_attention import max_tiles, plan_extend
from services.gpu_worker.kernels.predict_runs import BOUNDS, GUESS_ROWS, predict_runs

I32 = npt.NDArray[np.int32]

NO_SEAT = -1
_ALIGNED = 4  # numbers, so that every array begins where kernels load 16 bytes at once


class StepRows:
    """max_rows N. token_ids, positions, slots, lengths: int32 [N], of which a step takes the first rows.

    logits: int32 [LOGIT_ROWS, L] of rows whose next token is sampled, see `begin_step`: the row, the seat that gets the
    token, NO_SEAT for what only fills up, and where that seat stands. logit_rows, logit_seats: the first two of these.
    What `arrange` sets: seats: int32 [rows]; given:
    int32 [GIVEN_ROWS, rows]; part_seats, part_firsts, part_starts, part_counts: int32 [parts], of the chunks; tiles:
    int32 [2, T], of which num_tiles int32 [1] are there; guesses: int32 [GUESS_ROWS, at most L] and bounds:
    int32 [BOUNDS], see `predict_runs`."""

    def __init__(
        self, max_rows: int, max_logit_rows: int, seats: Seats, page_size: int, tile_rows: int, device: torch.device
    ) -> None:
        """tile_rows: of a tile of extend attention."""

        def int32(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.max_rows, self.max_logit_rows = max_rows, max_logit_rows
        self.token_ids, self.positions = int32(max_rows), int32(max_rows)
        self.slots, self.lengths = int32(max_rows), int32(max_rows)
        self._tile_rows = tile_rows
        self._state = seats
        self._page_size = page_size
        self._logits_end = _aligned(LOGIT_ROWS * max_logit_rows)
        most_tiles = max_tiles(max_rows, max_rows, tile_rows)
        self._buffer = int32(_Places(self._logits_end, max_rows, max_rows, most_tiles, max_logit_rows).end)
        self.logits = self._buffer[: LOGIT_ROWS * max_logit_rows].view(LOGIT_ROWS, max_logit_rows)
        self.logit_rows, self.logit_seats = self.logits[0], self.logits[1]
        self.arrange(max_rows, 0, 0)

    def arrange(self, num_rows: int, num_parts: int, num_tiles: int) -> None:
        """Where a pass finds its arrays: as many rows, parts and tiles as `set_decode` or `set_mixed` was told."""
        num_guesses = min(num_rows, self.max_logit_rows)
        at = _Places(self._logits_end, num_rows, num_parts, num_tiles, num_guesses)
        buffer = self._buffer
        self.seats = buffer[at.seats : at.seats + num_rows]
        self.given = buffer[at.given : at.given + GIVEN_ROWS * num_rows].view(GIVEN_ROWS, num_rows)
        self.part_seats, self.part_firsts, self.part_starts, self.part_counts = (
            buffer[start : start + num_parts] for start in at.parts
        )
        self.tiles = buffer[at.tiles : at.tiles + 2 * num_tiles].view(2, num_tiles)
        self.num_tiles = buffer[at.num_tiles : at.num_tiles + 1]
        self.guesses = buffer[at.guesses : at.guesses + GUESS_ROWS * num_guesses].view(GUESS_ROWS, num_guesses)
        self.bounds = buffer[at.bounds : at.bounds + BOUNDS]

    def most_tiles(self, num_rows: int, num_parts: int) -> int:
        return max_tiles(num_rows, num_parts, self._tile_rows)

    def set_decode(self, seats: I32, num_rows: int, staging: Staging) -> None:
        """The rows are sequences that decode, and are sampled, all of them."""
        at = _Places(self._logits_end, num_rows, 0, 0, 0)
        host = staging.reserve(at.given)
        rows, row_seats, positions, _ = host[: LOGIT_ROWS * self.max_logit_rows].reshape(LOGIT_ROWS, -1)
        rows[:num_rows] = np.arange(num_rows)
        row_seats[:] = positions[:] = NO_SEAT
        row_seats[: len(seats)] = seats
        host[at.seats : at.seats + num_rows] = row_seats[:num_rows]
        staging.send(host, self._buffer)

    def set_mixed(
        self,
        seats: I32,
        chunks: Sequence[Chunk],
        num_rows: int,
        num_parts: int,
        num_tiles: int,
        staging: Staging,
        guesses: Guesses | None = None,
    ) -> Room:
        """Sequences that decode, then chunks, filled up to num_rows and num_parts; a tile list of num_tiles places.
        With guesses the rows and parts that are left are for runs; returns how many these are."""
        num_guesses = min(num_rows, self.max_logit_rows)
        at = _Places(self._logits_end, num_rows, num_parts, num_tiles, num_guesses)
        host = staging.reserve(at.end)
        num_decode, num_chunks = len(seats), len(chunks)
        steps = [chunk.step for chunk in chunks]
        chunk_seats = np.fromiter((chunk.sequence.seat for chunk in chunks), np.int32, num_chunks)
        counts = np.fromiter((len(step.token_ids) for step in steps), np.int32, num_chunks)
        starts = np.fromiter((step.start for step in steps), np.int32, num_chunks)
        ends = num_decode + np.cumsum(counts)
        firsts = ends - counts
        end = num_decode + int(counts.sum())

        row_seats = host[at.seats : at.seats + num_rows]
        row_seats[:num_decode], row_seats[num_decode:] = seats, NO_SEAT
        tokens, positions, given_seats = host[at.given : at.given + GIVEN_ROWS * num_rows].reshape(GIVEN_ROWS, -1)
        tokens[:], given_seats[:] = 0, NO_SEAT
        positions[:] = 0
        if chunks:
            tokens[num_decode:end] = np.frombuffer(b"".join([step.token_ids for step in steps]), np.int32)
            positions[num_decode:end] = np.arange(num_decode, end) + np.repeat(starts - firsts, counts)
            given_seats[num_decode:end] = np.repeat(chunk_seats, counts)
        for start, values in zip(at.parts, (chunk_seats, firsts, starts, counts), strict=True):
            host[start : start + num_chunks] = values
        plan = plan_extend(starts, counts, self._tile_rows)
        host[at.tiles : at.tiles + 2 * num_tiles].reshape(2, -1)[:, : plan.shape[1]] = plan
        host[at.num_tiles] = plan.shape[1]

        is_sampled = np.fromiter((step.wants_logits for step in steps), np.bool_, num_chunks)
        sampled = slice(num_decode, num_decode + int(is_sampled.sum()))
        rows, seats_of, stands_at, outputs = host[: LOGIT_ROWS * self.max_logit_rows].reshape(LOGIT_ROWS, -1)
        rows[:], seats_of[:], stands_at[:] = 0, NO_SEAT, NO_SEAT
        rows[:num_decode], seats_of[:num_decode] = np.arange(num_decode), seats
        rows[sampled], seats_of[sampled] = (ends - 1)[is_sampled], chunk_seats[is_sampled]
        # The seat may be behind: forced tokens did not pass through it.
        stands_at[sampled] = (starts + counts - 1)[is_sampled]
        outputs[sampled] = [chunk.sequence.num_sampled for chunk in chunks if chunk.step.wants_logits]

        numbers, most = host[at.guesses : at.guesses + GUESS_ROWS * num_guesses].reshape(GUESS_ROWS, -1)
        numbers[:] = NOWHERE
        room = NO_ROOM
        if guesses is not None:
            numbers[:num_decode], most[:num_decode] = guesses.numbers, guesses.most
            room = Room(num_rows - end, num_parts - num_chunks)
        host[at.bounds : at.bounds + BOUNDS] = end, room.num_tokens, num_chunks
        staging.send(host, self._buffer)
        return room

    def begin(self, num_rows: int, *, has_chunks: bool) -> None:
        """Launches the gathering of the first `num_rows` rows. They have been arranged."""
        begin_step(
            self.seats,
            self._state.last_token,
            self._state.position,
            self._state.output_index,
            self._state.page_tables,
            self.given if has_chunks else None,
            self.logits if has_chunks else None,
            self._page_size,
            self.token_ids[:num_rows],
            self.positions[:num_rows],
            self.slots[:num_rows],
            self.lengths[:num_rows],
        )

    def predict(self, runs: DeviceRuns) -> None:
        """Launches the lookup of runs, behind `begin` with has_chunks."""
        predict_runs(
            self.guesses,
            self.bounds,
            runs.follow,
            runs.entries,
            runs.texts,
            runs.text_lengths,
            self.seats,
            self._state.last_token,
            self._state.position,
            self._state.output_index,
            self._state.page_tables,
            self._page_size,
            self.logit_rows,
            self.token_ids[: len(self.seats)],
            self.positions[: len(self.seats)],
            self.slots[: len(self.seats)],
            (self.part_seats, self.part_firsts, self.part_starts, self.part_counts),
            self.tiles,
            self.num_tiles,
            self._tile_rows,
        )


class _Places:
    """Where the arrays of a step begin in the buffer, and where the last of them ends."""

    def __init__(self, first: int, num_rows: int, num_parts: int, num_tiles: int, num_guesses: int) -> None:
        parts = _aligned(num_parts)
        self.seats = first
        self.given = first + _aligned(num_rows)
        begin = self.given + _aligned(GIVEN_ROWS * num_rows)
        self.parts = range(begin, begin + 4 * parts, parts) if parts else (begin,) * 4
        self.tiles = begin + 4 * parts
        self.num_tiles = self.tiles + _aligned(2 * num_tiles)
        self.guesses = self.num_tiles + _ALIGNED
        self.bounds = self.guesses + _aligned(GUESS_ROWS * num_guesses)
        self.end = self.bounds + _ALIGNED


def _aligned(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED
