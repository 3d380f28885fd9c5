"""What the services write: which lines are worth showing, and why one of them ended."""

import logging
import re
from collections import deque
from collections.abc import Sequence

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
"""A line of a service's log, as `shared.service` formats it."""

TRACEBACK = "Traceback (most recent call last):"


class LogFilter:
    """Decides line by line. What a library prints past the log shares the fate of the line before it; a traceback
    is always shown."""

    def __init__(self, level: str) -> None:
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._is_showing = False

    def shows(self, line: str) -> bool:
        match = LINE.match(line)
        if match:
            self._is_showing = logging.getLevelNamesMapping()[match[1]] >= self._level
        elif TRACEBACK in line:
            self._is_showing = True
        return self._is_showing


LONGEST_REASON = 400


def tail() -> deque[str]:
    """Room for the last lines of a process."""
    return deque(maxlen=50)


def reason_for_end(service: str, returncode: int, lines: Sequence[str]) -> str:
    """One line that says why a process ended, from its exit code and its last lines."""
    if returncode < 0:
        hint = " (out of memory?)" if returncode == -9 else ""
        return f"killed by signal {-returncode}{hint}"
    said = [line.strip() for line in lines if line.strip()]
    own = f"{service}: "
    for index in reversed(range(len(said))):
        if said[index].startswith(own):  # how `shared.service` reports what an operator can mend
            text = " ".join(said[index:]).removeprefix(own)
            return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
    if said:
        return f"exit code {returncode}: {said[-1]}"
    return f"exit code {returncode}"
