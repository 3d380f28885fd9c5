"""A worker that is killed by some requests: those whose tokens hold a mark. As with a driver's crash, the whole process
ends at once, and in the middle of a step."""

import os
import signal
from collections.abc import Sequence as Many

from services.gpu_worker.config import Limits, Settings
from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.executor import Chunk, Executor, Launch
from services.gpu_worker.grammar.prediction import Guesses
from services.gpu_worker.load import load_executor
from services.gpu_worker.main import main
from tests.chaos.model import token_id

MARK = "~~~~"
LAST_STEP = 5
"""The step that a marked sequence does not survive, counted from its first."""


class MortalExecutor:
    """An executor that kills its process in the last step of a marked sequence."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._mark = [token_id(symbol) for symbol in MARK]
        self._steps = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def launch(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None = None) -> Launch:
        if any(self._is_marked(sequence.token_ids) for sequence in decode.sequences):
            self._steps += 1
            if self._steps == LAST_STEP:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.launch(decode, chunks, guesses)

    def _is_marked(self, token_ids: Many[int]) -> bool:
        length = len(self._mark)
        return any(list(token_ids[at : at + length]) == self._mark for at in range(len(token_ids) - length + 1))


def load(settings: Settings, limits: Limits) -> Executor:
    return MortalExecutor(load_executor(settings, limits))  # type: ignore[return-value]


if __name__ == "__main__":
    main(load)
