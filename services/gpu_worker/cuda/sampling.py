"""From logits to the next token of every seat, on the device: a launch or a few, captured where the rows ask for
nothing special."""

from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.cuda.graphs import Graphs
from services.gpu_worker.cuda.seats import Seats
from services.gpu_worker.cuda.special import SpecialSeats
from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.matcher import mask_width
from services.gpu_worker.kernels.adjust_logits import Masks as DeviceMasks
from services.gpu_worker.kernels.adjust_logits import adjust_logits
from services.gpu_worker.kernels.advance import SeatState, advance
from services.gpu_worker.kernels.argmax import ArgmaxScratch, argmax
from services.gpu_worker.kernels.penalties import Penalties
from services.gpu_worker.kernels.sample import SampleScratch, sample
from services.gpu_worker.kernels.sample_filtered import sample_filtered
from services.gpu_worker.kernels.sampling_table import SamplingTable
from services.gpu_worker.sampling_state import SamplingState
from services.gpu_worker.sequence import Sequence

I32 = npt.NDArray[np.int32]

MOST_SEATS_A_MASK = 2
"""Copying a row that nobody needs takes the bus less time than gathering those that are needed takes the processor."""


class SeatSampler:
    """Chooses tokens and moves the seats on to them."""

    def __init__(self, seats: Seats, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._table = SamplingTable(
            seats.temperature, seats.top_p, seats.min_p, seats.top_k, seats.seed, seats.output_index
        )
        self._state = SeatState(
            seats.last_token,
            seats.position,
            seats.output_index,
            history=torch.zeros(2, max_rows, dtype=torch.int32, device=device),
            slot=torch.zeros(1, dtype=torch.int32, device=device),
        )
        self._argmax = ArgmaxScratch.allocate(max_rows, vocab_size, device)
        self._sample = SampleScratch.allocate(max_rows, vocab_size, device)
        self._special = SpecialSeats(len(seats.last_token), vocab_size, device)
        self._mask_bits = torch.zeros(max_rows, mask_width(vocab_size), dtype=torch.int32, device=device)
        self._host_bits: Tensor | None = None
        self._mask_rows = torch.full((max_rows,), -1, dtype=torch.int32, device=device)

    def make_masks(self) -> I32:
        """The pool that `choose` reads masks from."""
        self._host_bits = torch.zeros_like(self._mask_bits, device="cpu", pin_memory=self._mask_bits.is_cuda)
        bits: I32 = self._host_bits.numpy()
        return bits

    def take(self, sequence: Sequence) -> None:
        self._special.take(sequence)

    def append(self, sequence: Sequence, token_ids: Many[int]) -> None:
        """Output tokens that were not sampled."""
        self._special.append(sequence, token_ids)

    def flush(self, staging: Staging) -> None:
        self._special.flush(staging)

    def choose(
        self,
        logits: Tensor,
        seats: Tensor,
        tokens: Tensor,
        states: Many[SamplingState],
        masks: Masks | None,
        graphs: Graphs,
        staging: Staging,
    ) -> None:
        """logits float32 [L, V], changed; seats int32 [L]; tokens int32 [L] to be filled. states: of the first rows;
        the others have no seat."""
        has_penalties = any(state.has_penalties for state in states)
        is_greedy = all(state.is_greedy for state in states)
        is_named = any(state.sampling.logit_bias or state.sampling.min_tokens for state in states)
        if masks is not None:
            self._load(masks, staging)
        if has_penalties:  # rare, and their buffers are not there from the start
            penalties = self._special.penalties
            self._adjust(logits, seats, penalties, has_masks=masks is not None)
            self._choose(logits, seats, tokens, is_greedy=is_greedy, penalties=penalties)
        else:
            adjusts = "masks" if masks is not None else "named" if is_named else ""
            self._run(logits, seats, tokens, graphs, adjusts=adjusts, is_greedy=is_greedy)

    def compile(self, logits: Tensor, seats: Tensor, tokens: Tensor) -> None:
        """Compiles what rows that are sampled need, which takes longer than all other kernels together; from any
        thread."""
        for kernel in (sample, sample_filtered):
            kernel(logits, seats, self._table, self._sample, tokens, compile_only=True)

    def prepare(self, logits: Tensor, seats: Tensor, tokens: Tensor, graphs: Graphs) -> None:
        """Runs what rows that are sampled or masked need, with rows that have no seat."""
        for adjusts, is_greedy in (("", False), ("masks", True), ("masks", False)):
            self._run(logits, seats, tokens, graphs, adjusts=adjusts, is_greedy=is_greedy)

    def _run(
        self, logits: Tensor, seats: Tensor, tokens: Tensor, graphs: Graphs, *, adjusts: str, is_greedy: bool
    ) -> None:
        """adjusts: "masks", "named" (biases, barred stop ids) or empty."""

        def run() -> None:
            if adjusts:
                self._adjust(logits, seats, None, has_masks=adjusts == "masks")
            self._choose(logits, seats, tokens, is_greedy=is_greedy)

        version = self._special.version if adjusts else 0
        graphs.run(("greedy" if is_greedy else "random", adjusts, version, len(tokens)), run)

    def _adjust(self, logits: Tensor, seats: Tensor, penalties: Penalties | None, *, has_masks: bool) -> None:
        masks = DeviceMasks(self._mask_bits, self._mask_rows[: len(seats)]) if has_masks else None
        adjust_logits(logits, seats, self._state.output_index, self._special.named, penalties, masks)

    def _choose(
        self, logits: Tensor, seats: Tensor, tokens: Tensor, *, is_greedy: bool, penalties: Penalties | None = None
    ) -> None:
        if is_greedy:
            argmax(logits, seats, self._argmax, tokens)
        else:
            sample(logits, seats, self._table, self._sample, tokens)
            sample_filtered(logits, seats, self._table, self._sample, tokens)
        advance(tokens, seats, self._state, penalties)

    def _load(self, masks: Masks, staging: Staging) -> None:
        """Brings masks to where graphs find them: the seats' part of the pool as it is, unless few of it is needed."""
        first, end = int(masks.seats.min()), int(masks.seats.max()) + 1
        mask_rows = np.full(len(self._mask_rows), -1, np.int32)
        if end - first <= MOST_SEATS_A_MASK * len(masks.rows):
            assert self._host_bits is not None and masks.pool.ctypes.data == self._host_bits.data_ptr()
            self._mask_bits[first:end].copy_(self._host_bits[first:end], non_blocking=True)
            mask_rows[masks.rows] = masks.seats
        else:
            staging.upload(self._mask_bits, masks.bits)
            mask_rows[masks.rows] = np.arange(len(masks.rows), dtype=np.int32)
        staging.upload(self._mask_rows, mask_rows)
