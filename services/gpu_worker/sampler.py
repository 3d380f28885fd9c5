"""From logits to tokens, for rows that each have parameters of their own.

The order is SGLang's: additive penalties (presence, frequency; over the output), repetition penalty (over prompt
and output), logit bias, stop ids barred before min_tokens, temperature, softmax, top-k and top-p jointly (both
judge the whole distribution), min-p (against the likeliest token), draw.

A row's draw depends on its seed, its output index and its logits, on nothing else in the batch: one uniform
number (`philox.uniform`) is looked up in the row's cumulative distribution. Its order is by descending logit, equal
logits by ascending token id, when the row is filtered by top-k, top-p or min-p; else it is the vocabulary's, which
gives the same distribution without a sort. Masses are float64, so that the sums have room for a vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from services.gpu_worker import philox
from services.gpu_worker.draw import draw_filtered, draw_unfiltered
from services.gpu_worker.sampling_state import SamplingState


class Sampler:
    """Samples for one list of rows after another; what depends on the list alone is kept while it stays the same."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._batch = _Batch([], vocab_size, self._device)

    @torch.inference_mode()
    def sample(self, logits: Tensor, rows: list[SamplingState]) -> list[int | None]:
        """The next token of each row; None where the logits are no numbers (NaN, or nothing finite).

        logits: float32 [len(rows), vocab_size]; overwritten. The caller tells each row what it accepts."""
        if rows != self._batch.rows:
            self._batch = _Batch(rows, self._vocab_size, self._device)
        self._batch.adjust(logits)
        return self._batch.draw(logits)


class _Batch:
    """What is computed once for a list of rows."""

    def __init__(self, rows: list[SamplingState], vocab_size: int, device: torch.device) -> None:
        self.rows = list(rows)
        self._device = device
        self._vocab_size = vocab_size
        self._penalties = _Penalties(self.rows, vocab_size, device)
        self._bias_at = torch.tensor(
            [i * vocab_size + token for i, row in enumerate(rows) for token in row.sampling.logit_bias],
            dtype=torch.int64,
            device=device,
        )
        self._bias = torch.tensor(
            [bias for row in rows for bias in row.sampling.logit_bias.values()], dtype=torch.float32, device=device
        )
        self._barred = [(i * vocab_size, row) for i, row in enumerate(rows) if row.sampling.min_tokens > 0]
        random = [i for i, row in enumerate(rows) if not row.is_greedy]
        self._plain = _Draws([i for i in random if not rows[i].is_filtered], self.rows, device)
        self._filtered = _Draws([i for i in random if rows[i].is_filtered], self.rows, device)

    def adjust(self, logits: Tensor) -> None:
        """Penalties, bias and barred stop ids, in place. A grammar's mask goes after this."""
        self._penalties.apply(logits)
        if len(self._bias):
            logits.view(-1).index_add_(0, self._bias_at, self._bias)
        if self._barred:
            self._bar_stop_ids(logits)

    def _bar_stop_ids(self, logits: Tensor) -> None:
        barred = [(start, row) for start, row in self._barred if row.num_outputs < row.sampling.min_tokens]
        self._barred = barred
        at = [start + token for start, row in barred for token in row.stop_token_ids]
        if at:
            logits.view(-1)[torch.tensor(at, device=self._device)] = float("-inf")

    def draw(self, logits: Tensor) -> list[int | None]:
        tokens = logits.argmax(dim=-1)
        peaks = logits.gather(1, tokens.unsqueeze(1))  # NaN if the row has one: argmax counts it as largest
        if self._plain.size:
            self._plain.draw_unfiltered(logits, peaks, tokens)
        if self._filtered.size:
            self._filtered.draw_filtered(logits, peaks, tokens)
        found: list[int | None] = tokens.tolist()
        are_numbers = torch.isfinite(peaks)
        if not are_numbers.all():
            for i in (~are_numbers[:, 0]).nonzero()[:, 0].tolist():
                found[i] = None
        return found


class _Penalties:
    """Presence, frequency and repetition penalties, applied at the tokens that the rows have seen."""

    def __init__(self, rows: list[SamplingState], vocab_size: int, device: torch.device) -> None:
        self._device = device
        chosen = [(i, row) for i, row in enumerate(rows) if row.seen is not None]
        self._seen = [row.seen for _, row in chosen if row.seen is not None]
        self._row_starts = np.array([i * vocab_size for i, _ in chosen], np.int64)
        self._parameters = np.array(
            [
                (row.sampling.presence_penalty, row.sampling.frequency_penalty, row.sampling.repetition_penalty)
                for _, row in chosen
            ],
            np.float32,
        )

    def apply(self, logits: Tensor) -> None:
        if not self._seen:
            return
        sizes = [seen.size for seen in self._seen]
        at = np.concatenate([seen.ids[: seen.size] for seen in self._seen]) + np.repeat(self._row_starts, sizes)
        counts = self._to_device(np.concatenate([seen.counts[: seen.size] for seen in self._seen]))
        presence, frequency, repetition = self._to_device(np.repeat(self._parameters, sizes, axis=0)).unbind(1)
        index = self._to_device(at)
        flat = logits.view(-1)
        values = flat[index] - frequency * counts - presence * (counts > 0)
        flat[index] = torch.where(values > 0, values / repetition, values * repetition)

    def _to_device(self, values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
        return torch.from_numpy(values).to(self._device)


class _Draws:
    """The rows of a batch that are drawn in one way, with their parameters as columns [R, 1]."""

    def __init__(self, indices: list[int], rows: list[SamplingState], device: torch.device) -> None:
        self.size = len(indices)
        self._device = device
        self._rows = [rows[i] for i in indices]
        self._index = None if self.size == len(rows) else torch.tensor(indices, dtype=torch.int64, device=device)
        options = [row.sampling for row in self._rows]
        self._seeds = np.array([one.seed % 2**64 for one in options], np.uint64)
        self._temperature = self._column([one.temperature for one in options])
        self._top_k = self._column([one.top_k if one.top_k > 0 else np.inf for one in options])
        self._top_p = self._column([one.top_p if one.top_p < 1 else np.inf for one in options])
        self._min_p = self._column([one.min_p for one in options])

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device).unsqueeze(1)

    def draw_unfiltered(self, logits: Tensor, peaks: Tensor, tokens: Tensor) -> None:
        """Writes these rows' entries of `tokens`."""
        logits, peaks = self._mine(logits), self._mine(peaks)
        self._write(tokens, draw_unfiltered(logits, peaks, self._temperature, self._uniforms()))

    def draw_filtered(self, logits: Tensor, peaks: Tensor, tokens: Tensor) -> None:
        """Writes these rows' entries of `tokens`."""
        logits, peaks = self._mine(logits), self._mine(peaks)
        filters = self._top_k, self._top_p, self._min_p
        self._write(tokens, draw_filtered(logits, peaks, self._temperature, *filters, self._uniforms()))

    def _uniforms(self) -> Tensor:
        indices = np.fromiter((row.num_outputs for row in self._rows), np.uint64, self.size)
        uniforms = philox.uniform(self._seeds, indices).astype(np.float64)
        return torch.from_numpy(uniforms).to(self._device).unsqueeze(1)

    def _mine(self, values: Tensor) -> Tensor:
        return values if self._index is None else values[self._index]

    def _write(self, tokens: Tensor, drawn: Tensor) -> None:
        if self._index is None:
            tokens.copy_(drawn)
        else:
            tokens[self._index] = drawn
