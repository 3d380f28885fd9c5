"""What the device knows of every running sequence: its newest token, position, pages, and how it is sampled.

Kernels read and advance it from step to step; the host writes a seat when a sequence takes it and when its page
table grows. All writes are in the order of the stream, so a seat may be taken over while the last step of whoever had
it is still under way.
"""

import numpy as np
import numpy.typing as npt
import torch

from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.sequence import Sequence

I32 = npt.NDArray[np.int32]

_LAST_TOKEN, _POSITION, _OUTPUT_INDEX, _TOP_K, _TEMPERATURE, _TOP_P, _MIN_P = range(7)


class Seats:
    """num_seats rows, and one more that nobody takes.

    last_token, position, output_index, top_k: int32 [S]; temperature, top_p, min_p: float32 [S]; seed: int64 [S];
    page_tables: int32 [S, max_pages]. position: of last_token, whose keys and values are computed next."""

    def __init__(self, num_seats: int, max_pages: int, device: torch.device) -> None:
        self._numbers = torch.zeros(7, num_seats + 1, dtype=torch.int32, device=device)
        self.seed = torch.zeros(num_seats + 1, dtype=torch.int64, device=device)
        self.page_tables = torch.zeros(num_seats + 1, max_pages, dtype=torch.int32, device=device)
        self.last_token = self._numbers[_LAST_TOKEN]
        self.position = self._numbers[_POSITION]
        self.output_index = self._numbers[_OUTPUT_INDEX]
        self.top_k = self._numbers[_TOP_K]
        self.temperature = self._numbers[_TEMPERATURE].view(torch.float32)
        self.top_p = self._numbers[_TOP_P].view(torch.float32)
        self.min_p = self._numbers[_MIN_P].view(torch.float32)
        self._device = device
        self._max_pages = max_pages
        self._num_uploaded = [0] * num_seats
        self._taken: dict[int, Sequence] = {}
        self._grown: dict[int, Sequence] = {}

    def take(self, sequence: Sequence) -> None:
        self._taken[sequence.seat] = sequence
        self._grown[sequence.seat] = sequence
        self._num_uploaded[sequence.seat] = 0

    def extend(self, sequence: Sequence) -> None:
        self._grown[sequence.seat] = sequence

    def flush(self, staging: Staging) -> None:
        """Writes what has changed to the device."""
        if self._taken:
            self._write_numbers(staging)
        if self._grown:
            self._write_pages(staging)

    def _write_numbers(self, staging: Staging) -> None:
        seats = np.fromiter(self._taken, np.int64, len(self._taken))
        numbers = np.zeros((7, len(seats)), np.int32)
        floats = numbers.view(np.float32)
        seeds = np.zeros(len(seats), np.int64)
        for i, one in enumerate(self._taken.values()):
            sampling = one.sampling.sampling
            numbers[_POSITION, i] = len(one.token_ids) - 1
            numbers[_OUTPUT_INDEX, i] = one.num_sampled
            numbers[_TOP_K, i] = max(sampling.top_k, 0)
            floats[_TEMPERATURE, i] = 0.0 if one.sampling.is_greedy else sampling.temperature
            floats[_TOP_P, i] = sampling.top_p
            floats[_MIN_P, i] = sampling.min_p
            seeds[i] = sampling.seed
        at = staging.to_device(seats, self._device)
        values = staging.to_device(numbers, self._device).view(7, -1)
        self._numbers.index_copy_(1, at, values)
        self.seed.index_copy_(0, at, staging.to_device(seeds, self._device))
        self._taken.clear()

    def _write_pages(self, staging: Staging) -> None:
        places: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        pages: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
        for seat, one in self._grown.items():
            done = self._num_uploaded[seat]
            table = np.frombuffer(one.page_table, np.int32)[: self._max_pages]  # more than the context are never read
            self._num_uploaded[seat] = len(table)
            places.append(seat * self._max_pages + np.arange(done, len(table)))
            pages.append(table[done:].copy())
        self._grown.clear()
        if not sum(map(len, pages)):
            return
        at = staging.to_device(np.concatenate(places), self._device)
        self.page_tables.view(-1).index_copy_(0, at, staging.to_device(np.concatenate(pages), self._device))
