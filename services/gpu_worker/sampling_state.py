"""What sampling remembers of one sequence: its parameters, how many tokens came out, which tokens it has seen."""

from array import array
from collections.abc import Collection, Iterable

import numpy as np

from shared.errors import InvalidRequest
from shared.messages import Sampling

GREEDY_BELOW = 1e-5
"""A temperature under this is no temperature: the most likely token is taken."""


class SeenTokens:
    """The distinct tokens of a sequence and how often each came out, as growing arrays (`ids[:size]`,
    `counts[:size]`), so that a step adds one token instead of counting them all again."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._at: dict[int, int] = {}
        self.ids = np.zeros(64, np.int64)
        self.counts = np.zeros(64, np.float32)
        self.size = 0
        for token in prompt:
            self._slot(token)

    def add_output(self, token: int) -> None:
        slot = self._slot(token)  # may replace the arrays
        self.counts[slot] += 1

    def _slot(self, token: int) -> int:
        slot = self._at.get(token)
        if slot is None:
            slot = self._at[token] = self.size
            if slot == len(self.ids):
                self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
                self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.ids[slot] = token
            self.size += 1
        return slot


class SamplingState:
    """One row of the sampler. Compared by identity: the sampler keeps what it prepared for a list of rows.

    num_outputs: output tokens so far, which is also the index of the next one. stop_token_ids: those that the
    vocabulary has. seen: None when no penalty needs it."""

    __slots__ = ("num_outputs", "sampling", "seen", "stop_token_ids")

    def __init__(
        self,
        sampling: Sampling,
        stop_token_ids: Collection[int],
        prompt: "array[int]",
        outputs: "array[int]",
        vocab_size: int,
    ) -> None:
        """outputs: what was generated before, when a sequence is taken over. Raises InvalidRequest when the
        vocabulary has no such token."""
        for token in sampling.logit_bias:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    f"logit_bias names token {token}; the model has tokens 0 to {vocab_size - 1}", param="logit_bias"
                )
        self.sampling = sampling
        self.stop_token_ids = tuple(token for token in stop_token_ids if 0 <= token < vocab_size)
        self.num_outputs = len(outputs)
        self.seen: SeenTokens | None = None
        if self.has_penalties:
            self.seen = SeenTokens(prompt if sampling.repetition_penalty != 1.0 else ())
            for token in outputs:
                self.seen.add_output(token)

    def accept(self, token: int) -> None:
        """The token that came out."""
        self.num_outputs += 1
        if self.seen is not None:
            self.seen.add_output(token)

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        sampling = self.sampling
        return (
            sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0
        )
