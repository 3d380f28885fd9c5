"""The rows of a step in fixed device buffers: sequences that decode first, then the tokens of chunks in prefill.

A graph that was captured for N rows serves every step of up to N: rows without a sequence compute token 0 and write
nothing. What chunks need (tokens, positions, slots, parts and tiles of their attention) comes from the host; what
sequences that decode need is gathered from their seats on the device.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.cuda.seats import Seats
from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.executor import Chunk
from services.gpu_worker.kernels.begin_step import begin_step
from services.gpu_worker.kernels.extend_attention import max_tiles, plan_extend

I32 = npt.NDArray[np.int32]

NO_SEAT = -1


class StepRows:
    """max_rows N. seats, token_ids, positions, slots, lengths: int32 [N], of which a step takes the first rows.

    logit_rows: int64 [L], rows whose next token is sampled; logit_seats: int32 [L], the seats that get it, NO_SEAT
    for what only fills up. part_*: int32 [P] of the chunks; tiles: int32 [2, T], of which num_tiles int32 [1]
    are there."""

    def __init__(
        self, max_rows: int, max_logit_rows: int, seats: Seats, page_size: int, tile_rows: int, device: torch.device
    ) -> None:
        """tile_rows: of a tile of extend attention."""

        def int32(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.max_rows, self.max_logit_rows = max_rows, max_logit_rows
        self.seats, self.token_ids, self.positions = int32(max_rows), int32(max_rows), int32(max_rows)
        self.slots, self.lengths = int32(max_rows), int32(max_rows)
        self.logit_rows = torch.zeros(max_logit_rows, dtype=torch.int64, device=device)
        self.logit_seats = int32(max_logit_rows)
        self.host_rows = int32(3, max_rows)
        self.part_seats, self.part_firsts = int32(max_rows), int32(max_rows)
        self.part_starts, self.part_counts = int32(max_rows), int32(max_rows)
        self.num_tiles = int32(1)
        self._tile_rows = tile_rows
        self._tiles = int32(2 * max_tiles(max_rows, max_rows, tile_rows))
        self._state = seats
        self._page_size = page_size

    def tiles(self, num_tiles: int) -> Tensor:
        """[2, num_tiles], the front of the buffer."""
        return self._tiles[: 2 * num_tiles].view(2, num_tiles)

    def most_tiles(self, num_rows: int, num_parts: int) -> int:
        return max_tiles(num_rows, num_parts, self._tile_rows)

    def set_decode(self, seats: I32, num_rows: int, staging: Staging) -> None:
        """The rows are sequences that decode, and are sampled, all of them."""
        filled = np.full(num_rows, NO_SEAT, np.int32)
        filled[: len(seats)] = seats
        staging.upload(self.seats, filled)
        staging.upload(self.logit_seats, filled)

    def set_mixed(
        self,
        seats: I32,
        chunks: Sequence[Chunk],
        num_rows: int,
        num_logit_rows: int,
        num_tiles: int,
        staging: Staging,
    ) -> None:
        """Sequences that decode, then chunks, filled up to num_rows and num_logit_rows; a tile list of num_tiles
        places."""
        num_decode = len(seats)
        row_seats = np.full(num_rows, NO_SEAT, np.int32)
        row_seats[:num_decode] = seats
        host = np.zeros((3, self.max_rows), np.int32)
        host[2] = -1
        counts = np.fromiter((len(chunk.step.token_ids) for chunk in chunks), np.int32, len(chunks))
        starts = np.fromiter((chunk.step.start for chunk in chunks), np.int32, len(chunks))
        ends = num_decode + np.cumsum(counts)
        firsts = (ends - counts).astype(np.int32)
        for chunk, first, end in zip(chunks, firsts.tolist(), ends.tolist(), strict=True):
            step = chunk.step
            positions = np.arange(step.start, step.end, dtype=np.int32)
            table = np.frombuffer(step.page_table, np.int32)
            host[0, first:end] = np.frombuffer(step.token_ids, np.int32)
            host[1, first:end] = positions
            host[2, first:end] = table[positions // self._page_size] * self._page_size + positions % self._page_size
        finishing = [i for i, chunk in enumerate(chunks) if chunk.step.wants_logits]
        logit_rows = np.zeros(num_logit_rows, np.int64)
        logit_seats = np.full(num_logit_rows, NO_SEAT, np.int32)
        logit_rows[:num_decode] = np.arange(num_decode)
        logit_seats[:num_decode] = seats
        logit_rows[num_decode : num_decode + len(finishing)] = ends[finishing] - 1
        chunk_seats = np.fromiter((chunk.sequence.seat for chunk in chunks), np.int32, len(chunks))
        logit_seats[num_decode : num_decode + len(finishing)] = chunk_seats[finishing]
        tiles = np.zeros((2, num_tiles), np.int32)
        plan = plan_extend(starts, counts, self._tile_rows)
        tiles[:, : plan.shape[1]] = plan
        staging.upload(self.seats, row_seats)
        for i in range(3):
            staging.upload(self.host_rows[i], host[i, :num_rows])
        staging.upload(self.logit_rows, logit_rows)
        staging.upload(self.logit_seats, logit_seats)
        staging.upload(self.part_seats, chunk_seats)
        staging.upload(self.part_firsts, firsts)
        staging.upload(self.part_starts, starts)
        staging.upload(self.part_counts, counts)
        staging.upload(self._tiles, tiles)
        staging.upload(self.num_tiles, np.array([plan.shape[1]], np.int32))
        if finishing:
            # The seat may be behind: forced tokens did not pass through it.
            self._state.place(
                chunk_seats[finishing],
                (starts + counts - 1)[finishing],
                np.fromiter((chunks[i].sequence.num_sampled for i in finishing), np.int32, len(finishing)),
                staging,
            )

    def begin(self, num_rows: int, *, has_chunks: bool) -> None:
        """Launches the gathering of the first `num_rows` rows."""
        begin_step(
            self.seats[:num_rows],
            self._state.last_token,
            self._state.position,
            self._state.page_tables,
            self.host_rows[:, :num_rows] if has_chunks else None,
            self._page_size,
            self.token_ids[:num_rows],
            self.positions[:num_rows],
            self.slots[:num_rows],
            self.lengths[:num_rows],
        )
