"""Seats whose requests ask for more than temperature and filters: penalties, biases, a least number of tokens."""

from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.kernels.adjust_logits import NamedTokens
from services.gpu_worker.kernels.penalties import Penalties
from services.gpu_worker.sampling_state import SamplingState
from services.gpu_worker.sequence import Sequence

_FEW_BIASES = 64
_FEW_STOP_IDS = 16


def is_special(state: SamplingState) -> bool:
    return bool(state.has_penalties or state.sampling.logit_bias or state.sampling.min_tokens)


class SpecialSeats:
    """What the device has to know of them, written when such a sequence takes a seat. The buffers of penalties, which
    are large, are made for the first sequence that has any.

    version: goes up when `named` is in other buffers."""

    def __init__(self, num_seats: int, vocab_size: int, device: torch.device) -> None:
        self.named = NamedTokens.allocate(num_seats, _FEW_BIASES, _FEW_STOP_IDS, device)
        self.penalties: Penalties | None = None
        self.version = 0
        self._num_seats = num_seats
        self._vocab_size = vocab_size
        self._device = device
        self._used: set[int] = set()
        self._taken: dict[int, Sequence] = {}
        self._appended: list[tuple[int, npt.NDArray[np.int64]]] = []

    def take(self, sequence: Sequence) -> None:
        seat = sequence.seat
        self._appended = [one for one in self._appended if one[0] != seat]
        self._taken.pop(seat, None)  # whoever had it may have gone before anything was written
        if is_special(sequence.sampling) or seat in self._used:
            self._taken[seat] = sequence

    def append(self, sequence: Sequence, token_ids: Many[int]) -> None:
        """Output tokens that were not sampled count for penalties too."""
        if sequence.sampling.has_penalties:
            self._appended.append((sequence.seat, np.array(token_ids, np.int64)))

    def flush(self, staging: Staging) -> None:
        for seat, sequence in self._taken.items():
            self._write(seat, sequence, staging)
        self._taken.clear()
        for seat, tokens in self._appended:
            assert self.penalties is not None
            at = staging.to_device(tokens, self._device)
            self.penalties.counts[seat].index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
        self._appended.clear()

    def _write(self, seat: int, sequence: Sequence, staging: Staging) -> None:
        state = sequence.sampling
        bias, stop_ids = state.sampling.logit_bias, state.stop_token_ids
        self._make_room(len(bias), len(stop_ids))
        named = self.named

        def put(target: Tensor, values: npt.NDArray[np.generic]) -> None:
            if values.size:
                staging.upload(target, values)

        put(named.bias_ids[seat], np.fromiter(bias, np.int32, len(bias)))
        put(named.bias_values[seat], np.fromiter(bias.values(), np.float32, len(bias)))
        put(named.stop_ids[seat], np.array(stop_ids, np.int32))
        for target, value in (
            (named.bias_counts, len(bias)),
            (named.stop_counts, len(stop_ids)),
            (named.min_tokens, state.sampling.min_tokens),
        ):
            target[seat : seat + 1].fill_(value)
        self._write_penalties(seat, sequence, staging)
        (self._used.add if is_special(state) else self._used.discard)(seat)

    def _write_penalties(self, seat: int, sequence: Sequence, staging: Staging) -> None:
        state = sequence.sampling
        if not state.has_penalties:
            if self.penalties is not None:
                self.penalties.rows[seat : seat + 1].fill_(-1)
            return
        if self.penalties is None:
            self.penalties = Penalties.allocate(self._num_seats, self._num_seats, self._vocab_size, self._device)
        penalties = self.penalties
        assert state.seen is not None
        ids = state.seen.ids[: state.seen.size]
        counts = np.zeros(self._vocab_size, np.int32)
        counts[ids] = state.seen.counts[: state.seen.size]
        words = np.zeros(penalties.seen.shape[1], np.uint32)
        if state.sampling.repetition_penalty != 1.0:
            np.bitwise_or.at(words, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
        staging.upload(penalties.counts[seat], counts)
        staging.upload(penalties.seen[seat], words.view(np.int32))
        for target, value in (
            (penalties.rows, seat),
            (penalties.presence, state.sampling.presence_penalty),
            (penalties.frequency, state.sampling.frequency_penalty),
            (penalties.repetition, state.sampling.repetition_penalty),
        ):
            target[seat : seat + 1].fill_(value)

    def _make_room(self, num_biases: int, num_stop_ids: int) -> None:
        """Wider buffers when a request names more tokens than any before it."""
        old = self.named
        most_biases, most_stop_ids = old.bias_ids.shape[1], old.stop_ids.shape[1]
        if num_biases <= most_biases and num_stop_ids <= most_stop_ids:
            return
        wider = NamedTokens.allocate(
            self._num_seats,
            max(most_biases, 1 << (num_biases - 1).bit_length() if num_biases else 0),
            max(most_stop_ids, 1 << (num_stop_ids - 1).bit_length() if num_stop_ids else 0),
            self._device,
        )
        wider.bias_ids[:, :most_biases] = old.bias_ids
        wider.bias_values[:, :most_biases] = old.bias_values
        wider.stop_ids[:, :most_stop_ids] = old.stop_ids
        for new, before in (
            (wider.bias_counts, old.bias_counts),
            (wider.stop_counts, old.stop_counts),
            (wider.min_tokens, old.min_tokens),
        ):
            new.copy_(before)
        self.named = wider
        self.version += 1
