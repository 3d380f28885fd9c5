"""What has come of a choice's answer and nobody has taken yet: its text, in runs of one kind."""

from typing import NamedTuple

from shared.messages import Channel

TEXTS_KEPT = 64
"""Pieces of a run kept apart before they are joined: a slow reader costs text, not lists."""


class Part(NamedTuple):
    """A run of text. call: the tool call that a name or arguments belong to."""

    channel: Channel
    call: int
    text: str


class Parts:
    """Takes text in order and gives it out in runs."""

    __slots__ = ("_call", "_channel", "_done", "_texts")

    def __init__(self) -> None:
        self._channel = Channel.CONTENT
        self._call = 0
        self._texts: list[str] = []  # of the last run
        self._done: list[Part] = []

    def __len__(self) -> int:
        """Pieces held."""
        return len(self._done) + len(self._texts)

    def add(self, channel: Channel, call: int, text: str) -> None:
        if channel is not self._channel or call != self._call:
            self._end_run()
            self._channel, self._call = channel, call
        self._texts.append(text)
        if len(self._texts) > TEXTS_KEPT:
            self._texts = ["".join(self._texts)]

    def take(self) -> list[Part]:
        """What was added since the last call."""
        self._end_run()
        done, self._done = self._done, []
        return done

    def so_far(self) -> list[Part]:
        """As `take`, but takes nothing."""
        self._end_run()
        merged: list[Part] = []
        for part in self._done:
            if merged and merged[-1][:2] == part[:2]:
                merged[-1] = Part(part.channel, part.call, merged[-1].text + part.text)
            else:
                merged.append(part)
        self._done = merged
        return merged

    def _end_run(self) -> None:
        texts = self._texts
        if texts:
            self._done.append(Part(self._channel, self._call, texts[0] if len(texts) == 1 else "".join(texts)))
            self._texts = []
