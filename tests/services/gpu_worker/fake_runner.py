"""A model whose next token is a hash of every token that it reads through the page table.

A wrong page, position, order or copy makes it read something else than the sequence, and so shows as a wrong
token; a page that nobody filled shows as an error at once."""

from array import array
from collections.abc import Callable, Sequence

import torch

from services.gpu_worker.step import SequenceStep

VOCAB_SIZE = 97


def next_token(token_ids: Sequence[int]) -> int:
    """What the model says after `token_ids`."""
    value = 1
    for token in token_ids:
        value = (value * 1_000_003 + token + 1) % 2_147_483_647
    return value % VOCAB_SIZE


def expected_outputs(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeRunner:
    """predict: the token that follows some tokens. The pages hold (position, token).
    calls: for each forward (tokens, start) of every part, as they came."""

    def __init__(
        self,
        num_pages: int = 64,
        page_size: int = 4,
        max_model_len: int = 200,
        vocab_size: int = VOCAB_SIZE,
        predict: Callable[[list[int]], int] = next_token,
    ) -> None:
        self.vocab_size = vocab_size
        self.predict = predict
        self.num_pages = num_pages
        self.page_size = page_size
        self.max_model_len = max_model_len
        self.pages: list[list[tuple[int, int] | None]] = [[None] * page_size for _ in range(num_pages)]
        self.calls: list[list[tuple[list[int], int]]] = []
        self.copies: list[tuple[int, int]] = []
        self.spoilt_tokens: set[int] = set()
        self.failures = 0

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.pages[target] = list(self.pages[source])
        self.copies += pairs

    def forward(self, steps: Sequence[SequenceStep]) -> torch.Tensor:
        """The row of a sequence whose last token is in `spoilt_tokens` is NaN; `failures` calls raise."""
        assert steps
        assert all(len(step.token_ids) for step in steps)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the device fell off")
        self.calls.append([(list(step.token_ids), step.start) for step in steps])
        written: set[tuple[int, int]] = set()
        for step in steps:
            for i, token in enumerate(step.token_ids):
                place = self._place(step.page_table, step.start + i)
                assert place not in written, "two sequences write to one place"
                written.add(place)
                self.pages[place[0]][place[1]] = (step.start + i, token)
        logits = [self._logits(step) for step in steps if step.wants_logits]
        return torch.stack(logits) if logits else torch.zeros(0, self.vocab_size)

    def _place(self, page_table: "array[int]", position: int) -> tuple[int, int]:
        assert position < len(page_table) * self.page_size, "a position outside the page table"
        return page_table[position // self.page_size], position % self.page_size

    def _logits(self, step: SequenceStep) -> torch.Tensor:
        tokens = []
        for position in range(step.end):
            page, offset = self._place(step.page_table, position)
            held = self.pages[page][offset]
            assert held is not None, f"page {page} was read at {offset} before anybody filled it"
            assert held[0] == position, f"page {page} holds position {held[0]} at {offset}, not {position}"
            tokens.append(held[1])
        logits = torch.zeros(self.vocab_size)
        logits[self.predict(tokens)] = 1000.0
        return logits * torch.nan if step.token_ids[-1] in self.spoilt_tokens else logits
