"""Lists of entries with commas between: some required, some optional, in a fixed order, then any number of others.

What objects and arrays have in common.
"""

from dataclasses import dataclass

from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.rules import EMPTY, Rules, counted

MAX_COUNTED = 4000
"""Entries times counts that states are made for."""

COMMA = '", "'


@dataclass(frozen=True, slots=True)
class Entry:
    expression: str
    is_required: bool


def listing(
    rules: Rules,
    entries: list[Entry],
    others: str | None,
    least: int,
    most: int | None,
    *,
    opening: str,
    closing: str,
    may_repeat: bool = False,
) -> str | None:
    """An expression with brackets; None: there is no such list. others: what may follow the entries, any number of
    times. least, most: entries and others together. may_repeat: others may be the same one again, so that no more than
    one of them counts towards `least`, which is then at most one more than there are entries."""
    required = sum(entry.is_required for entry in entries)
    if most is not None and most >= len(entries) and others is None:
        most = None
    if max(required, least) > (most if most is not None else max(required, least)):
        return None
    if others is None and least > len(entries):
        return None
    if least <= required:
        least = 0
    if least and others is None and least == len(entries):
        entries, least = [Entry(entry.expression, True) for entry in entries], 0
    builder = _Listing(rules, entries, others, least, most, may_repeat=may_repeat)
    inner = builder.rest(0, 0, is_first=True)
    assert inner is not None, "whether there is such a list was looked at before"
    return f"{opening} {inner} {closing}"


class _Listing:
    def __init__(
        self,
        rules: Rules,
        entries: list[Entry],
        others: str | None,
        least: int,
        most: int | None,
        *,
        may_repeat: bool,
    ) -> None:
        self._rules = rules
        self._entries = entries
        self._others = others
        self._least = least
        self._most = most
        self._may_repeat = may_repeat
        self._counts = bool(least) or most is not None
        if self._counts and len(entries) * (max(least, most or 0) + 1) > MAX_COUNTED:
            raise Unenforceable("counts too many properties or items to be enforced beside optional ones")
        self._known: dict[tuple[int, int, bool], str | None] = {}

    def rest(self, place: int, count: int, *, is_first: bool) -> str | None:
        """What may come from the entry at `place` on, `count` of them being there; None: nothing can be right."""
        for start in range(len(self._entries) - 1, place, -1):  # from the end, so that nothing recurses deeply
            for before in range(min(start, self._cap) + 1) if self._counts else (0,):
                for first in (True, False):
                    if not (first and before):
                        self._rule(start, before, first)
        return self._rule(place, count, is_first)

    @property
    def _cap(self) -> int:
        return max(self._least, self._most or 0)

    def _rule(self, place: int, count: int, is_first: bool) -> str | None:
        key = (place, count, is_first)
        if key not in self._known:
            body = self._body(place, count, is_first)
            self._known[key] = body if body is None or body == EMPTY else self._rules.add(body)
        return self._known[key]

    def _body(self, place: int, count: int, is_first: bool) -> str | None:
        if place == len(self._entries):
            return self._tail(count, is_first)
        entry = self._entries[place]
        parts = []
        if self._most is None or count < self._most:
            more = min(count + 1, self._cap) if self._counts else 0
            behind = self._rule(place + 1, more, False)
            if behind is not None:
                comma = "" if is_first else f"{COMMA} "
                parts.append(f"{comma}{entry.expression}" + ("" if behind == EMPTY else f" {behind}"))
        if not entry.is_required:
            without = self._rule(place + 1, count, is_first)
            if without is not None:
                parts.append(without)
        return " | ".join(parts) if parts else None

    def _tail(self, count: int, is_first: bool) -> str | None:
        least = max(self._least - count, 0)
        most = None if self._most is None else self._most - count
        if self._others is None or most == 0:
            return None if least else EMPTY
        if self._may_repeat and least > 1:
            return None
        following = f"({COMMA} {self._others})"
        if not is_first:
            return counted(following, least, most)
        some = f"{self._others} {counted(following, max(least - 1, 0), None if most is None else most - 1)}"
        return some if least else f"{some} | {EMPTY}"
