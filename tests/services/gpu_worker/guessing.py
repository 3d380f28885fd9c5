"""An executor that guesses runs as a GPU does, step by step."""

from array import array
from collections.abc import Sequence as Many

import numpy as np

from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.executor import Chunk, StepExecutor, StepLaunch
from services.gpu_worker.grammar.automaton import State
from services.gpu_worker.grammar.prediction import NO_ROOM, Guesses, Room, RunTable
from services.gpu_worker.step import Runner, SequenceStep


class MisleadingTable(RunTable):
    """Believes that something is forced everywhere, until it is told."""

    def _give_number(self, state: State) -> int:
        number = super()._give_number(state)
        self._show(number, (number % 7 + 2,) * (1 + number % 2), 1)
        return number


class GuessingExecutor(StepExecutor):
    """A token is known to it when it is sampled, to the engine a step later."""

    run_ahead = 1
    table = RunTable
    room = Room(6, 3)

    def __init__(self, runner: Runner, num_seats: int) -> None:
        super().__init__(runner, num_seats)
        self.runs = self.table()

    def launch(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None = None) -> StepLaunch:
        steps = [self._of(sequence) for sequence in decode.sequences]
        parts = list(steps)
        if guesses is not None:
            tokens = np.array([step.token_ids[0] for step in steps], np.int32)
            lengths, numbers = self.runs.find(guesses, tokens, self.room)
            for row in np.flatnonzero(lengths).tolist():
                step, length = steps[row], int(lengths[row])
                run = self.runs.run(int(numbers[row]), length)
                parts[row] = SequenceStep(array("i", [*step.token_ids, *run]), step.start, step.page_table, True)
                step.start += length
        last = [chunk for chunk in chunks if chunk.step.wants_logits]
        logits = self._runner.forward(parts + [chunk.step for chunk in chunks])
        for chunk in last:
            self._of(chunk.sequence).start = chunk.step.end - 1
            chunk.sequence.sampling.num_outputs = chunk.sequence.num_sampled  # it may be back from a wrong guess
        steps += [self._of(chunk.sequence) for chunk in last]
        rows = [one.sampling for one in decode.sequences] + [chunk.sequence.sampling for chunk in last]
        launch = StepLaunch(self._sampler, logits, steps, rows)
        launch.room = self.room if guesses is not None else NO_ROOM
        return launch


class MisguessingExecutor(GuessingExecutor):
    """Often wrong."""

    table = MisleadingTable
