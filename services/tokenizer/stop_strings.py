"""Stop strings across token borders: text goes through as soon as it can no longer be the start of one."""

import re
from collections.abc import Sequence


class StopStrings:
    """Looks for any of `stops` in one sequence's text, which comes in pieces of any size.

    The match that is complete first counts; of several complete at the same character, the longest one."""

    __slots__ = ("_first", "_held", "_longest", "_shown", "_stops")

    def __init__(self, stops: Sequence[str], is_stop_shown: bool) -> None:
        assert stops
        assert all(stops)
        self._stops = tuple(stops)
        self._shown = is_stop_shown
        self._longest = max(map(len, stops))
        self._first = re.compile("[" + "".join(re.escape(first) for first in sorted({stop[0] for stop in stops})) + "]")
        self._held = ""

    def push(self, text: str, *, is_active: bool = True) -> tuple[str, str | None]:
        """(text to show, stop string that matched). After a match the sequence is over. Not active: a stop
        string that is complete within `text` does not count, one that only begins in it does."""
        old, buffer = len(self._held), self._held + text
        if is_active:
            found = self._find(buffer, old)
            if found is not None:
                start, stop = found
                self._held = ""
                return buffer[: start + len(stop)] if self._shown else buffer[:start], stop
        held_from = self._held_from(buffer)
        self._held = buffer[held_from:]
        return buffer[:held_from], None

    def flush(self) -> str:
        """What was held back; for the end of the sequence."""
        held, self._held = self._held, ""
        return held

    def _find(self, buffer: str, old: int) -> tuple[int, str] | None:
        """(start, stop string) of the first complete match that ends after the first `old` characters."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop, max(0, old - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _held_from(self, buffer: str) -> int:
        """Where the longest end of `buffer` starts that may become a stop string."""
        for match in self._first.finditer(buffer, max(0, len(buffer) - self._longest + 1)):
            rest = buffer[match.start() :]
            if any(stop.startswith(rest) for stop in self._stops):
                return match.start()
        return len(buffer)
