"""What a step computes, as plain data: the border between the engine (leases, order) and the model (tensors)."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

PREFILL_SHARE = 4
"""However many sequences decode, a step has room for a quarter of the prefill budget."""


@dataclass(slots=True)
class SequenceStep:
    """A sequence's part of a step: compute keys and values of `token_ids`, which stand at positions
    start .. start + len(token_ids) - 1, attending to everything before them.

    page_table: the sequence's pages in order, at least up to its last computed position; token at position p
    lives in page page_table[p // page_size] at offset p % page_size. wants_logits: of the last token."""

    token_ids: "array[int]"
    start: int
    page_table: "array[int]"
    wants_logits: bool

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class Pool(Protocol):
    """What a sequence must fit."""

    vocab_size: int
    num_pages: int
    page_size: int
    max_model_len: int


class Runner(Pool, Protocol):
    """A model with its page pool on one device. Not thread-safe: one thread calls it."""

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole pages (source, target) of all layers; ahead of the next forward."""

    def forward(self, steps: Sequence[SequenceStep]) -> torch.Tensor:
        """float32 logits [number of steps with wants_logits, vocab_size], in the order of `steps`.

        All keys and values of a layer are written before that layer attends, so a step may attend to
        pages that another entry of the same call fills."""
