"""What later steps would have to compile or capture first, in small parts for the time in which there is no step."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch

from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.matcher import mask_width

RUNS = 2
"""The first compiles, the second captures."""


class Preparation:
    """Parts of some ten milliseconds each, the most likely to be needed first. A part is run with rows that have no
    sequence, so that it changes nothing that a sequence could see."""

    def __init__(self, parts: Iterator[Callable[[], None]]) -> None:
        self._parts = deque(parts)

    def go_on(self) -> bool:
        """Does the next part; whether there are more."""
        if self._parts:
            part = self._parts.popleft()
            for _ in range(RUNS):
                part()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return bool(self._parts)


def no_masks(vocab_size: int) -> Masks:
    """A mask for a row without a sequence."""
    return Masks([0], np.zeros((1, mask_width(vocab_size)), np.int32))
