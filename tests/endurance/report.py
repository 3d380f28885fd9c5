"""Numbers of a run, for people."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.client import Stream

FILE = os.environ.get("SAPWOOD_ENDURANCE_REPORT")


def longest_wait_s(stream: Stream) -> float:
    """The longest time between two events of a stream, 0 if it had fewer."""
    return max((later - earlier for earlier, later in itertools.pairwise(stream.times)), default=0.0)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the greatest, rounded; nothing of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) for name, share in at.items()}


def write_report(title: str, numbers: dict[str, Any]) -> None:
    """To standard output, and as a line of JSON to `SAPWOOD_ENDURANCE_REPORT`."""
    print(title, json.dumps(numbers, indent=2), flush=True)
    if FILE:
        with Path(FILE).open("a") as file:
            file.write(json.dumps({title: numbers}) + "\n")
