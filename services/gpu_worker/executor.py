"""The border between the engine (leases, order, ends) and what computes: a model, its pages, its sampler.

Every sequence sits in a *seat*. What changes from token to token (the newest token, its position, what the sampler
remembers) is the executor's, so that on a GPU it can live in device memory and a step need not wait for the CPU
to see the tokens of the step before.
"""

from array import array
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.matcher import empty_masks
from services.gpu_worker.grammar.prediction import NO_ROOM, Guesses, Room, RunTable
from services.gpu_worker.sampler import Sampler
from services.gpu_worker.sampling_state import SamplingState
from services.gpu_worker.sequence import Sequence
from services.gpu_worker.step import Runner, SequenceStep

I32 = npt.NDArray[np.int32]

NO_TOKEN = -1
"""Stands for the token of a row whose logits were no numbers."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Known tokens of a sequence that a step computes. The next one is sampled after if step.wants_logits."""

    sequence: Sequence
    step: SequenceStep


class Launch(Protocol):
    """A step under way. Rows: the decode set's sequences, then the chunks that want logits, in order.

    room: for runs that are guessed."""

    room: Room

    def sample(self, masks: Masks | None = None) -> None:
        """Starts the choice of each row's next token; once, and before the next launch. masks: what rows of
        constrained sequences may choose from; of a row that may choose nothing the token is NO_TOKEN."""

    def tokens(self) -> I32:
        """The sampled token of each row, NO_TOKEN where its logits are no numbers. Waits for the device."""


class Executor(Protocol):
    """One thread calls it. run_ahead: steps that may be launched before the tokens of the first of them are taken.
    runs: what it looks guesses up in, as it is at a launch; None if it does not."""

    vocab_size: int
    num_pages: int
    page_size: int
    max_model_len: int
    num_seats: int
    run_ahead: int

    @property
    def runs(self) -> RunTable | None: ...

    def warm_up(self) -> None:
        """Builds now what the first steps would have to build, and shows what is broken. Before any sequence."""

    def prepare(self) -> bool:
        """Builds, in a few hundredths of a second, a part of what rarer steps would have to build; whether there is
        more. While no step is under way."""

    def seat(self, sequence: Sequence) -> None:
        """The sequence takes sequence.seat; whoever had it before has gone."""

    def extend(self, sequence: Sequence) -> None:
        """The sequence's page table has grown."""

    def append(self, sequence: Sequence, token_ids: Many[int]) -> None:
        """Output tokens that are not sampled follow those of the steps launched so far; they are the end of
        sequence.token_ids, and chunks will compute them. The next token that is sampled comes after them."""

    def copy_pages(self, pairs: Many[tuple[int, int]]) -> None:
        """Copies whole pages (source, target) of all layers, ahead of the next launch."""

    def make_masks(self) -> I32:
        """Memory for a mask row a seat [num_seats, mask_width(V)], from which masks are read; once."""

    def launch(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None = None) -> Launch:
        """Starts a step: one token of each sequence in `decode`, and the chunks. All keys and values of a layer are
        written before that layer attends. The same `decode` object means the same sequences as before.

        guesses: what else is computed for these sequences, if `runs` has it: behind a row's newest token its run, after
        which the row's next token is sampled, and comes."""


class StepExecutor:
    """Runs each step to its end before it returns: for a CPU, where there is nothing to overlap with."""

    run_ahead = 0
    runs: RunTable | None = None

    def __init__(self, runner: Runner, num_seats: int) -> None:
        self._runner = runner
        self._sampler = Sampler(runner.vocab_size)
        self._next: list[SequenceStep | None] = [None] * num_seats
        self._decode = DecodeSet([])
        self._steps: list[SequenceStep] = []
        self._rows: list[SamplingState] = []
        self.vocab_size = runner.vocab_size
        self.num_pages = runner.num_pages
        self.page_size = runner.page_size
        self.max_model_len = runner.max_model_len
        self.num_seats = num_seats

    def warm_up(self) -> None:
        self._runner.forward([SequenceStep(array("i", [0]), 0, array("i", [0]), wants_logits=True)])

    def prepare(self) -> bool:
        return False

    def seat(self, sequence: Sequence) -> None:
        self._next[sequence.seat] = SequenceStep(array("i", [0]), 0, sequence.page_table, wants_logits=True)

    def extend(self, sequence: Sequence) -> None:
        """The steps look at the sequence's own page table."""

    def append(self, sequence: Sequence, token_ids: Many[int]) -> None:
        for token_id in token_ids:
            sequence.sampling.accept(token_id)

    def copy_pages(self, pairs: Many[tuple[int, int]]) -> None:
        self._runner.copy_pages(pairs)

    def make_masks(self) -> I32:
        return empty_masks(self.num_seats, self.vocab_size)

    def launch(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None = None) -> "StepLaunch":
        assert guesses is None
        if decode is not self._decode:
            self._decode = decode
            self._steps = [self._of(sequence) for sequence in decode.sequences]
            self._rows = [sequence.sampling for sequence in decode.sequences]
        last = [chunk for chunk in chunks if chunk.step.wants_logits]
        logits = self._runner.forward(self._steps + [chunk.step for chunk in chunks])
        for chunk in last:
            self._of(chunk.sequence).start = chunk.step.end - 1
        steps = self._steps + [self._of(chunk.sequence) for chunk in last]
        rows = self._rows + [chunk.sequence.sampling for chunk in last]
        return StepLaunch(self._sampler, logits, steps, rows)

    def _of(self, sequence: Sequence) -> SequenceStep:
        step = self._next[sequence.seat]
        assert step is not None
        return step


class StepLaunch:
    """A step whose logits are there. steps: those that computed the rows; they become the rows' next ones."""

    room = NO_ROOM

    def __init__(self, sampler: Sampler, logits: object, steps: list[SequenceStep], rows: list[SamplingState]) -> None:
        self._sampler = sampler
        self._logits = logits
        self._steps = steps
        self._rows = rows
        self._tokens = np.empty(0, np.int32)

    def sample(self, masks: Masks | None = None) -> None:
        if not self._rows:
            return
        tokens = self._sampler.sample(self._logits, self._rows, masks)  # type: ignore[arg-type]
        for step, row, token in zip(self._steps, self._rows, tokens, strict=True):
            if token is not None:
                row.accept(token)
                step.token_ids[0] = token
                step.start += 1
        self._tokens = np.array([NO_TOKEN if token is None else token for token in tokens], np.int32)

    def tokens(self) -> I32:
        return self._tokens
