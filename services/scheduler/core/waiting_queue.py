"""The order in which waiting sequences get their turn."""

import heapq
from collections.abc import Iterator
from typing import Protocol

from services.scheduler.core.sequence import Sequence


class Policy(Protocol):
    """Lower keys come first. A key may depend on the match, not on the time of asking: then aging costs nothing,
    because all who wait age alike."""

    def key(self, sequence: Sequence) -> float: ...


class FirstComeFirstServed:
    """By arrival."""

    def key(self, sequence: Sequence) -> float:
        return sequence.request.arrival


class LongestPrefixMatch:
    """By cached prefix, longest first; a second of waiting counts as `aging` more cached tokens, so that nobody
    starves behind those with long prefixes.

    matched + aging * (now - arrival) orders as matched - aging * arrival does, at any time."""

    def __init__(self, aging: float) -> None:
        self.aging = aging

    def key(self, sequence: Sequence) -> float:
        return self.aging * sequence.request.arrival - sequence.num_matched


class WaitingQueue:
    """A priority queue whose members' keys may change: call `put` again after a change."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[int, float, int, int, Sequence]] = []
        self._members: dict[int, Sequence] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._members.values()))

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.sequence_id in self._members

    def put(self, sequence: Sequence) -> None:
        if sequence.sequence_id not in self._members:
            self._members[sequence.sequence_id] = sequence
            self.num_tokens += sequence.num_tokens
        sequence.queue_version += 1
        entry = (
            -sequence.request.priority,
            self._policy.key(sequence),
            sequence.number,
            sequence.queue_version,
            sequence,
        )
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 4 * len(self._members) + 64:
            self._heap = [old for old in self._heap if self._is_current(old)]
            heapq.heapify(self._heap)

    def first(self) -> Sequence | None:
        while self._heap:
            if self._is_current(self._heap[0]):
                return self._heap[0][-1]
            heapq.heappop(self._heap)
        return None

    def remove(self, sequence: Sequence) -> None:
        del self._members[sequence.sequence_id]
        self.num_tokens -= sequence.num_tokens

    def _is_current(self, entry: tuple[int, float, int, int, Sequence]) -> bool:
        sequence = entry[-1]
        return self._members.get(sequence.sequence_id) is sequence and entry[3] == sequence.queue_version
