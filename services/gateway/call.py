"""A completion request in flight: what has come for it and what its handler has not taken yet.

The inbox puts text in, the handler takes it out; nothing here waits but `Call.news`. What a slow client leaves
lying is text, joined, so a call's memory is bounded by the length of its output.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.gateway import metrics
from services.gateway.parts import Part, Parts
from shared.errors import ErrorBody, InternalError, Unavailable
from shared.messages import Channel, Delta, Finished, FinishReason, sequence_id


class Choice:
    """One sequence of a call.

    parts: what has come and nobody has taken; history: all that has come, of a call that is kept. skipped: characters
    at the beginning that its reader has had before, and `take` leaves out. received: characters of its text that have
    come; num_calls: tool calls in it. finished: its end, if that is one to tell the client; is_over: nobody computes it
    any more, however it ended."""

    __slots__ = (
        "call",
        "finished",
        "history",
        "index",
        "is_dirty",
        "is_over",
        "last_at",
        "num_calls",
        "num_prompt_tokens",
        "num_tokens",
        "parts",
        "prompt",
        "received",
        "sequence_id",
        "skipped",
    )

    def __init__(self, call: "Call", index: int, prompt: int, sequence: int) -> None:
        self.call = call
        self.index = index
        self.prompt = prompt
        self.sequence_id = sequence
        self.parts = Parts()
        self.history = Parts() if call.is_kept else None
        self.skipped = 0
        self.received = 0
        self.num_calls = 0
        self.num_tokens = 0
        self.num_prompt_tokens = 0
        self.finished: Finished | None = None
        self.is_dirty = False
        self.is_over = False
        self.last_at = 0.0

    def add(self, delta: Delta, now: float) -> None:
        """Takes what is new in a delta: one may come twice, and after a takeover cut in another place."""
        if self.is_over:
            return
        missing = delta.offset - self.received
        if missing > 0:
            metrics.REPLY_GAPS.inc()
            self.call.fail(Unavailable("A part of the output was lost; try again.", retry_after_s=1).body())
            return
        text = delta.text[-missing:] if missing else delta.text
        new_tokens = delta.num_tokens - self.num_tokens
        if not text and new_tokens <= 0:
            return
        if text:
            self.received += len(text)
            self.call.add_unread(len(text))
            self.parts.add(delta.channel, delta.call, text)
            if self.history is not None:
                self.history.add(delta.channel, delta.call, text)
            if delta.channel is Channel.CALL_NAME:
                self.num_calls = delta.call + 1
        if new_tokens > 0:
            self.num_tokens = delta.num_tokens
            if self.call.is_again:
                pass  # counted where it came first
            elif self.last_at:
                metrics.INTER_TOKEN_LATENCY.observe((now - self.last_at) / new_tokens, new_tokens)
            elif not self.call.first_at:
                self.call.first_at = now
            self.last_at = now
        if delta.num_prompt_tokens:
            self.num_prompt_tokens = delta.num_prompt_tokens
        self.call.changed(self)

    def finish(self, finished: Finished) -> None:
        if self.is_over:
            return
        self.is_over = True
        if finished.reason is FinishReason.ERROR or finished.reason is FinishReason.ABORT:
            error = finished.error
            if error is None and finished.reason is FinishReason.ABORT:
                error = Unavailable("The request was ended by the server; try again.", retry_after_s=1).body()
            self.call.fail(error or InternalError("The request failed.").body())
            return
        self.finished = finished
        self.num_tokens = finished.num_tokens
        self.num_prompt_tokens = finished.num_prompt_tokens
        self.call.num_open -= 1
        self.call.changed(self)

    def take(self) -> list[Part]:
        """What has come since it was last asked for."""
        self.is_dirty = False
        parts = self.parts.take()
        self.call.unread -= sum(len(part.text) for part in parts)
        while self.skipped and parts:
            part = parts[0]
            if len(part.text) > self.skipped:
                parts[0] = Part(part.channel, part.call, part.text[self.skipped :])
                self.skipped = 0
            else:
                self.skipped -= len(part.text)
                del parts[0]
        return parts

    @property
    def finish_reason(self) -> str | None:
        """As the client is told it: an answer that ended by itself and calls tools waits for their results."""
        if self.finished is None:
            return None
        is_waiting = self.num_calls and self.finished.reason is FinishReason.STOP and self.finished.stop_reason is None
        return "tool_calls" if is_waiting else self.finished.reason.value


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens of a call so far; cached, reasoning and forced ones are known of finished sequences."""

    prompt: int
    completion: int
    cached: int
    reasoning: int = 0
    forced: int = 0


class Call:
    """A request and its choices. request_ids: one a prompt; cursor: the reply stream's last entry before it.

    is_streamed: wakes the handler for every piece of text; otherwise once, when all is there. is_kept: remembers all of
    its text, for it may have to be told again. is_again: tells what another call has been told before. on_end: called
    once all of the answer is there or it has failed."""

    def __init__(
        self,
        call_id: str,
        num_prompts: int,
        n: int,
        *,
        is_streamed: bool,
        is_kept: bool = False,
        is_again: bool = False,
        cursor: str = "0",
    ) -> None:
        self.id = call_id
        self.n = n
        self.is_streamed = is_streamed
        self.is_kept = is_kept
        self.is_again = is_again
        self.is_handed_over = False
        self.unread = 0
        self.most_unread = 0
        self.on_flood: Callable[[], None] | None = None
        self.on_end: Callable[[Call], None] | None = None
        self.cursor = cursor
        self.request_ids = [call_id] if num_prompts == 1 else [f"{call_id}-{place}" for place in range(num_prompts)]
        self.choices = [
            Choice(self, prompt * n + choice, prompt, sequence_id(request_id, choice))
            for prompt, request_id in enumerate(self.request_ids)
            for choice in range(n)
        ]
        self.num_open = len(self.choices)
        self.first_at = 0.0
        self.error: ErrorBody | None = None
        self._dirty: list[Choice] = []
        self._wake = asyncio.Event()

    def changed(self, choice: Choice) -> None:
        if not choice.is_dirty:
            choice.is_dirty = True
            self._dirty.append(choice)
        if self.is_streamed:
            self._wake.set()
        if not self.num_open:
            self._wake.set()
            self._end()

    def fail(self, error: ErrorBody) -> None:
        """Ends the call; the first error is the one that counts."""
        if self.error is None and self.num_open:
            self.error = error
            self._wake.set()
            self._end()

    def add_unread(self, characters: int) -> None:
        """Counts text that waits to be taken. What waits for a reader that is slow has a limit, where it is told that
        one is."""
        self.unread += characters
        if self.on_flood is not None and self.unread > self.most_unread > 0:
            on_flood, self.on_flood = self.on_flood, None
            on_flood()

    def hand_over(self) -> None:
        """Leaves the call, unfinished, to whichever gateway its reader goes to."""
        self.is_handed_over = True
        self.fail(Unavailable("This gateway is stopping; ask again for the rest.", retry_after_s=1).body())

    def _end(self) -> None:
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end(self)

    def reject(self, request_id: str, error: ErrorBody) -> None:
        """Ends the call because one of its prompts will not be run."""
        prompt = self.request_ids.index(request_id)
        for choice in self.choices[prompt * self.n : (prompt + 1) * self.n]:
            choice.is_over = True
        self.fail(error)

    async def news(self) -> None:
        """Returns once there is text to take, or the end: `error` is set, or `num_open` is 0."""
        await self._wake.wait()
        self._wake.clear()

    def take_changed(self) -> Sequence[Choice]:
        """Choices with text to take or an end to tell."""
        dirty, self._dirty = self._dirty, []
        return dirty

    @property
    def open_sequences(self) -> list[int]:
        """Those that somebody may still be computing."""
        return [choice.sequence_id for choice in self.choices if not choice.is_over]

    def totals(self) -> Totals:
        """A prompt counts once however many choices it has, and as cached what all of them found in the cache."""
        prompt = cached = 0
        for start in range(0, len(self.choices), self.n):
            group = self.choices[start : start + self.n]
            prompt += max(choice.num_prompt_tokens for choice in group)
            cached += min(choice.finished.cached_tokens if choice.finished else 0 for choice in group)
        ends = [choice.finished for choice in self.choices if choice.finished is not None]
        return Totals(
            prompt,
            sum(choice.num_tokens for choice in self.choices),
            cached,
            sum(end.reasoning_tokens for end in ends),
            sum(end.forced_tokens for end in ends),
        )
