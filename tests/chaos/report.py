"""How long streams stood still after each kind of blow."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.chaos.client import Stream
from tests.chaos.harm import Struck


def longest_gaps(streams: Iterable[Stream], struck: Sequence[Struck]) -> dict[str, list[float]]:
    """By kind of blow: for every stream that was under way, its longest wait, in seconds, from the blow until the
    next one."""
    gaps: dict[str, list[float]] = {one.blow.label: [] for one in struck}
    ends = [later.at for later in struck[1:]] + [float("inf")]
    for one, until in zip(struck, ends, strict=True):
        for stream in streams:
            times = stream.times
            if not times or not times[0] <= one.at < times[-1]:
                continue
            waits = [b - max(a, one.at) for a, b in itertools.pairwise(times) if b > one.at and a < until]
            gaps[one.blow.label].append(max(waits))
    return gaps


def longest_waits(streams: Iterable[Stream], struck: Sequence[Struck], count: int = 8) -> list[str]:
    """The longest waits of all, with what was done from ten seconds before on."""
    waits = [(b - a, a, b, stream.number) for stream in streams for a, b in itertools.pairwise(stream.times)]
    lines = []
    for wait, a, b, number in sorted(waits, reverse=True)[:count]:
        near = [f"{one.blow.kind} {one.blow.process} {one.at - a:+.1f}" for one in struck if a - 10 < one.at < b]
        lines.append(f"{wait:.1f} s, stream {number}: {', '.join(near)}")
    return lines


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(streams: Sequence[Stream], struck: Sequence[Struck], requests: Sequence[str]) -> dict[str, Any]:
    """Counts, and recovery times in seconds by kind of blow. requests: what kind each is."""
    gaps = longest_gaps(streams, struck)
    kinds: dict[str, dict[str, float]] = {}
    for label in sorted(gaps):
        count = sum(one.blow.label == label for one in struck)
        waits = gaps[label]
        kinds[label] = {"blows": count, "streams": len(waits)}
        if waits:
            kinds[label] |= {
                "p50_s": round(quantile(waits, 0.5), 3),
                "p99_s": round(quantile(waits, 0.99), 3),
                "max_s": round(max(waits), 3),
            }
    return {
        "streams": len(streams),
        "requests": dict(sorted(Counter(requests[stream.request] for stream in streams).items())),
        "blows": len(struck),
        "resent": sum(stream.resent for stream in streams),
        "resumed": sum(stream.resumed for stream in streams),
        "left": sum(stream.left for stream in streams),
        "refused": sum(stream.refused for stream in streams),
        "faults": sum(stream.fault is not None for stream in streams),
        "kinds": kinds,
        "longest waits": longest_waits(streams, struck),
    }


def table(summary: dict[str, Any]) -> str:
    """As lines of text."""
    lines = [f"{summary['streams']} streams, {summary['blows']} blows, {summary['faults']} faults,"]
    lines[0] += f" {summary['resent']} cut ({summary['left']} by their clients), {summary['resumed']} resumed,"
    lines[0] += f" {summary['refused']} told to come back"
    lines.append("; ".join(f"{count} {kind}" for kind, count in summary["requests"].items()))
    lines.append(f"{'kind':24}{'blows':>6}{'streams':>9}{'p50 s':>9}{'p99 s':>9}{'max s':>9}")
    for label, kind in summary["kinds"].items():
        times = "".join(f"{kind[name]:9.2f}" if name in kind else f"{'-':>9}" for name in ("p50_s", "p99_s", "max_s"))
        lines.append(f"{label:24}{kind['blows']:6}{kind['streams']:9}{times}")
    return "\n".join([*lines, *summary["longest waits"]])
