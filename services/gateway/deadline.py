"""How long a request may take: the field `timeout`, the header X-Request-Timeout and the server's own limit. Pure."""

import math

from multidict import CIMultiDictProxy

from shared.errors import InvalidRequest

HEADER = "X-Request-Timeout"
LONGEST_S = 1e9


def timeout_of(headers: CIMultiDictProxy[str], asked_s: float | None, limit_s: float) -> float:
    """The shortest of those that are given, in seconds; 0: none is. Raises InvalidRequest for a header that is no
    positive number."""
    given = [asked_s] if asked_s is not None else []
    if HEADER in headers:
        given.append(_parsed(headers[HEADER]))
    if limit_s:
        given.append(limit_s)
    return min(given, default=0.0)


def _parsed(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:
        raise InvalidRequest(
            f"The header {HEADER} must be a number of seconds above 0 and up to {LONGEST_S:g}.", param=HEADER
        )
    return seconds
