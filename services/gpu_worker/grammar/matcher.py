"""A sequence's place in its grammar.

Tokens go in one by one; out come the tokens that may follow, as bits, and the text that must. A stop id is allowed
exactly where the grammar may end. A place where nothing but a stop id is allowed is the end: it is not sampled.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from services.gpu_worker.grammar.automaton import Automaton, State

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


def mask_width(vocab_size: int) -> int:
    """Words of 32 bits in a mask row."""
    return -(-vocab_size // 32)


class Matcher(Protocol):
    """One engine's matcher over a vocabulary of V tokens. state: where in its grammar's automaton it is; None where it
    has none, or does not know. automaton: this one."""

    @property
    def state(self) -> "State | None": ...

    @property
    def automaton(self) -> "Automaton | None": ...

    def accept(self, token_id: int) -> bool:
        """Goes on by a token; False, and no change, if the grammar does not allow it."""

    def rollback(self, num_tokens: int) -> None:
        """Takes the last tokens back."""

    def fill(self, mask: I32) -> None:
        """Writes which tokens may follow: int32 [mask_width(V)], token t is bit t % 32 of word t // 32."""

    def can_end(self) -> bool:
        """Whether what was accepted is a whole answer."""

    def forced_text(self) -> bytes:
        """What must follow whatever is chosen; may end in the middle of a character."""

    @classmethod
    def accept_many(cls, matchers: "Sequence[Self]", token_ids: Sequence[int]) -> list[bool]:
        """`accept` for each of them. An error leaves it open which have gone on."""

    @classmethod
    def fill_many(cls, matchers: "Sequence[Self]", bits: I32, rows: Sequence[int]) -> None:
        """Fills these rows of `bits`, one for each matcher, and holds no lock of Python's meanwhile."""


class Compiled(Protocol):
    """A compiled grammar."""

    @property
    def num_bytes(self) -> int:
        """Its size in memory, about. May grow."""

    def matcher(self, stop_token_ids: Sequence[int]) -> Matcher:
        """At the grammar's start. stop_token_ids: those of the sequence, each below V."""


def empty_mask(vocab_size: int) -> I32:
    return np.zeros(mask_width(vocab_size), np.int32)


def empty_masks(num_rows: int, vocab_size: int) -> I32:
    return np.zeros((num_rows, mask_width(vocab_size)), np.int32)


def mask_of(token_ids: Sequence[int] | I64, vocab_size: int) -> I32:
    """A row that allows these tokens alone."""
    bits = np.zeros(mask_width(vocab_size) * 32, np.bool_)
    bits[np.asarray(token_ids, np.int64)] = True
    return np.packbits(bits, bitorder="little").view(np.int32)


def bit_of(token_id: int) -> np.int32:
    """The word with the token's bit."""
    return np.uint32(1 << token_id % 32).astype(np.int32)
