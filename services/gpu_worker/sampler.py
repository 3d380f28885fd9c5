"""From logits to tokens on the CPU, for rows that each have parameters of their own.

The order is SGLang's: additive penalties (presence, frequency; over the output), repetition penalty (over prompt
and output), logit bias, stop ids barred before min_tokens, a grammar's mask, temperature, softmax, top-k and top-p
jointly (both judge the whole distribution), min-p (against the likeliest token), draw.

A row's draw depends on its seed, its output index and its logits, and on nothing else in the batch: one uniform
number (`philox.uniform`) is looked up in the row's own cumulative distribution (`draw`).

numpy, not torch: a row's operations are too short to be worth waking torch's threads for, and on cores that are
shared with other processes those threads wait for each other longer than they compute.
"""

import numpy as np
import numpy.typing as npt
import torch

from services.gpu_worker import philox
from services.gpu_worker.draw import Filters, draw_filtered, draw_unfiltered
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.sampling_state import SamplingState

F32 = npt.NDArray[np.float32]


class Sampler:
    """Samples for one list of rows after another; what depends on the list alone is kept while it stays the same."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._batch = _Batch([], vocab_size)

    def sample(self, logits: torch.Tensor, rows: list[SamplingState], masks: Masks | None = None) -> list[int | None]:
        """The next token of each row; None where the logits are no numbers (NaN, or nothing finite).

        logits: float32 [len(rows), vocab_size]; may be overwritten. masks: tokens that are not allowed are out. The
        caller tells each row what it accepts."""
        assert logits.shape == (len(rows), self._vocab_size)
        if rows != self._batch.rows:
            self._batch = _Batch(rows, self._vocab_size)
        values = logits.contiguous().cpu().numpy()
        self._batch.adjust(values)
        if masks is not None:
            _apply(masks, values)
        return self._batch.draw(values)


class _Batch:
    """What is computed once for a list of rows."""

    def __init__(self, rows: list[SamplingState], vocab_size: int) -> None:
        self.rows = list(rows)
        self._penalties = _Penalties(rows, vocab_size)
        bias = [
            (i * vocab_size + token, row.sampling.logit_bias[token])
            for i, row in enumerate(rows)
            for token in row.sampling.logit_bias
        ]
        self._bias_at = np.array([at for at, _ in bias], np.int64)
        self._bias = np.array([value for _, value in bias], np.float32)
        self._barring = [(i * vocab_size, row) for i, row in enumerate(rows) if row.sampling.min_tokens > 0]
        self._random = [i for i, row in enumerate(rows) if not row.is_greedy]
        self._seeds = np.array([rows[i].sampling.seed % 2**64 for i in self._random], np.uint64)
        self._filters = [_filters(rows[i]) for i in self._random]

    def adjust(self, logits: F32) -> None:
        """Penalties, bias and barred stop ids, in place."""
        self._penalties.apply(logits)
        flat = logits.reshape(-1)
        if len(self._bias):
            flat[self._bias_at] += self._bias
        if self._barring:
            self._barring = [(at, row) for at, row in self._barring if row.num_outputs < row.sampling.min_tokens]
            flat[[at + token for at, row in self._barring for token in row.stop_token_ids]] = -np.inf

    def draw(self, logits: F32) -> list[int | None]:
        likeliest = logits.argmax(axis=-1)
        peaks = logits[np.arange(len(logits)), likeliest]  # NaN if the row has one: argmax takes it for the largest
        tokens: list[int | None] = likeliest.tolist()
        are_numbers = np.isfinite(peaks)
        if self._random:
            indices = np.array([self.rows[i].num_outputs for i in self._random], np.uint64)
            uniforms = philox.uniform(self._seeds, indices).tolist()
            for i, filters, u in zip(self._random, self._filters, uniforms, strict=True):
                if are_numbers[i]:
                    tokens[i] = _draw(logits[i], float(peaks[i]), self.rows[i].sampling.temperature, filters, u)
        for i in np.flatnonzero(~are_numbers).tolist():
            tokens[i] = None
        return tokens


def _apply(masks: Masks, logits: F32) -> None:
    """Sets what is not allowed to -inf, in the rows that have a mask."""
    vocab_size = logits.shape[1]
    for row, words in zip(masks.rows, masks.bits, strict=True):
        is_allowed = np.unpackbits(words.view(np.uint8), bitorder="little", count=vocab_size).view(np.bool_)
        logits[row][~is_allowed] = -np.inf


def _filters(row: SamplingState) -> Filters | None:
    sampling = row.sampling
    if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
        return None
    return Filters(max(sampling.top_k, 0), sampling.top_p, sampling.min_p)


def _draw(logits: F32, peak: float, temperature: float, filters: Filters | None, u: float) -> int:
    if filters is None:
        return draw_unfiltered(logits, peak, temperature, u)
    return draw_filtered(logits, peak, temperature, filters, u)


class _Penalties:
    """Presence, frequency and repetition penalties, applied at the tokens that the rows have seen."""

    def __init__(self, rows: list[SamplingState], vocab_size: int) -> None:
        chosen = [(i, row.sampling, row.seen) for i, row in enumerate(rows) if row.seen is not None]
        self._seen = [seen for _, _, seen in chosen]
        self._row_starts = np.array([i * vocab_size for i, _, _ in chosen], np.int64)
        self._presence = np.array([one.presence_penalty for _, one, _ in chosen], np.float32)
        self._frequency = np.array([one.frequency_penalty for _, one, _ in chosen], np.float32)
        self._repetition = np.array([one.repetition_penalty for _, one, _ in chosen], np.float32)

    def apply(self, logits: F32) -> None:
        if not self._seen:
            return
        sizes = [seen.size for seen in self._seen]
        at = np.concatenate([seen.ids[: seen.size] for seen in self._seen]) + self._row_starts.repeat(sizes)
        counts = np.concatenate([seen.counts[: seen.size] for seen in self._seen])
        flat = logits.reshape(-1)
        values = flat[at] - self._frequency.repeat(sizes) * counts - self._presence.repeat(sizes) * (counts > 0)
        repetition = self._repetition.repeat(sizes)
        flat[at] = np.where(values > 0, values / repetition, values * repetition)
