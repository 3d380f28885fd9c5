"""What later steps would have to compile or capture first, in small parts for the time in which there is no step."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

import torch

log = logging.getLogger(__name__)

RUNS = 2
"""The first compiles, the second captures."""


class Preparation:
    """Parts of some ten milliseconds each, the most likely to be needed first. A part is run with rows that have no
    sequence, so that it changes nothing that a sequence could see.

    compile_: what takes seconds; runs on a thread of its own from the first part on. last: parts that need it."""

    def __init__(
        self, parts: Iterator[Callable[[], None]], compile_: Callable[[], None], last: Iterator[Callable[[], None]]
    ) -> None:
        self._compiling = threading.Thread(target=self._compile, args=(compile_,), name="compile", daemon=True)
        self._has_begun = False
        self._parts, self._last = deque(parts), deque(last)

    def go_on(self) -> bool:
        """Does the next part; whether there are more."""
        if not self._has_begun:
            self._has_begun = True
            self._compiling.start()
        left = self._parts or self._last
        if not self._parts and self._compiling.is_alive():
            return True
        if left:
            part = left.popleft()
            for _ in range(RUNS):
                part()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return bool(self._parts or self._last)

    @staticmethod
    def _compile(compile_: Callable[[], None]) -> None:
        try:
            compile_()
        except Exception:  # whoever needs the kernels will be told
            log.exception("compiling ahead")
