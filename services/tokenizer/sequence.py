"""One sequence's output: tokens in, deltas and an end out. Pure."""

from services.tokenizer.decode import Detokenizer
from services.tokenizer.stop_strings import StopStrings
from services.tokenizer.tools.answer import AnswerReader
from services.tokenizer.tools.reader import Piece, joined
from shared.errors import ErrorBody
from shared.messages import Channel, Delta, Ended, Finished, FinishReason, Open
from shared.packing import unpack_i32


class SequenceOutput:
    """Takes a sequence's tokens in any order and any number of times, and uses each once, in order.

    The text and what it is part of depend on the tokens alone, not on how they came; so one that is rebuilt from the
    log sends again the same characters at the same offsets."""

    __slots__ = (
        "_early",
        "_ended",
        "_ends",
        "_forced",
        "_forced_tokens",
        "_min_tokens",
        "_parts",
        "_pieces",
        "_reader",
        "_reasoning_tokens",
        "_sent",
        "_stops",
        "_text",
        "attempt",
        "cached_tokens",
        "deadline",
        "entry_id",
        "finished",
        "first_token_at",
        "last_heard_at",
        "num_tokens",
        "open",
        "opened_at",
        "sequence_id",
        "traceparent",
        "was_cut",
    )

    def __init__(
        self,
        detokenizer: Detokenizer,
        opened: Open,
        sequence_id: int,
        *,
        entry_id: str,
        now: float,
        traceparent: str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.open = opened
        self.sequence_id = sequence_id
        self.entry_id = entry_id
        self.traceparent = traceparent
        self.deadline = deadline
        self.opened_at = now
        self.last_heard_at = now
        self.first_token_at: float | None = None
        self.num_tokens = 0
        self.cached_tokens: int | None = None  # as said with the first token
        self.attempt = 0
        self.finished: Finished | None = None
        self.was_cut = False  # a stop string ended it while the worker goes on
        self._text = detokenizer.stream(unpack_i32(opened.prompt_tail), opened.skip_special_tokens, opened.kept)
        self._reader = AnswerReader(opened.format) if opened.format else None
        self._reasoning_tokens = 0
        self._stops = StopStrings(opened.stop, opened.include_stop_str_in_output) if opened.stop else None
        self._min_tokens = opened.min_tokens
        shown = opened.include_stop_str_in_output
        self._ends = frozenset[int]() if shown else frozenset([*opened.stop_token_ids, *opened.eos_token_ids])
        self._early: dict[int, int] = {}  # index -> token that came before those ahead of it
        self._forced: set[int] = set()  # indices of early tokens that the grammar forced
        self._forced_tokens = 0
        self._ended: Ended | None = None  # came before the last tokens
        self._parts: list[str] = []  # plain text
        self._pieces: list[Piece] = []  # or what the reader found in it
        self._sent = 0

    def push(self, index: int, token_id: int, is_forced: bool = False) -> None:
        """One output token; `index` counts from 0. What is known already or comes after the end is ignored.
        is_forced: a grammar left no choice about it."""
        if self.finished is not None:
            return
        if index != self.num_tokens:
            if index > self.num_tokens and index not in self._early:
                self._early[index] = token_id
                if is_forced:
                    self._forced.add(index)
            return
        self._forced_tokens += is_forced
        self._take(token_id)
        while self._early and self.finished is None:
            following = self._early.pop(self.num_tokens, None)
            if following is None:
                break
            self._forced_tokens += self.num_tokens in self._forced
            self._take(following)
        if self._ended is not None:
            self.end(self._ended)

    @property
    def has_gap(self) -> bool:
        """Whether tokens, or the end, have come ahead of others that are still missing."""
        return self.finished is None and (bool(self._early) or self._ended is not None)

    def end(self, ended: Ended) -> None:
        """The worker's or scheduler's word that the sequence is over. A regular end waits for its tokens."""
        if self.finished is not None:
            return
        is_regular = ended.reason in (FinishReason.STOP, FinishReason.LENGTH)
        if is_regular and self.num_tokens < ended.num_tokens:
            self._ended = ended
            return
        self.attempt = ended.attempt
        if self.cached_tokens is None:
            self.cached_tokens = ended.cached_tokens
        self._take_text(self._text.flush())
        if self.finished is not None:
            return
        if self._stops is not None:
            self._show(self._stops.flush())
        asked = ended.stop_token_id in self.open.stop_token_ids
        self._finish(
            ended.reason,
            num_tokens=max(self.num_tokens, ended.num_tokens),
            stop_reason=ended.stop_token_id if asked else None,
            error=ended.error,
        )

    def fail(self, error: ErrorBody) -> None:
        """Gives the sequence up."""
        self._finish(FinishReason.ERROR, num_tokens=self.num_tokens, error=error)

    def take_deltas(self) -> list[Delta]:
        """The text since the last call."""
        if self._reader is None:
            text = "".join(self._parts)
            self._parts.clear()
            return [self._delta(Channel.CONTENT, 0, text)] if text else []
        pieces = joined(self._pieces)
        self._pieces.clear()
        return [self._delta(*piece) for piece in pieces]

    def _delta(self, channel: Channel, call: int, text: str) -> Delta:
        delta = Delta(
            sequence_id=self.sequence_id,
            offset=self._sent,
            text=text,
            num_tokens=self.num_tokens,
            num_prompt_tokens=self.open.num_prompt_tokens,
            channel=channel,
            call=call,
        )
        self._sent += len(text)
        return delta

    def _take(self, token_id: int) -> None:
        self.num_tokens += 1
        if self._reader is not None and self._reader.is_reasoning:
            self._reasoning_tokens = self.num_tokens
        if token_id in self._ends:
            return
        text = self._text.push(token_id)
        if text:
            if self._stops is None and self._reader is None:
                self._parts.append(text)
            else:
                self._take_text(text)

    def _take_text(self, text: str) -> None:
        if self._stops is None:
            self._show(text)
            return
        shown, stop = self._stops.push(text, is_active=self.num_tokens > self._min_tokens)
        self._show(shown)
        if stop is not None:
            self.was_cut = True
            self._finish(FinishReason.STOP, num_tokens=self.num_tokens, stop_reason=stop)

    def _show(self, text: str) -> None:
        if self._reader is None:
            self._parts.append(text)
        elif text:
            self._pieces += self._reader.push(text)

    def _finish(
        self,
        reason: FinishReason,
        *,
        num_tokens: int,
        stop_reason: str | int | None = None,
        error: ErrorBody | None = None,
    ) -> None:
        self._early.clear()
        if self._reader is not None:
            self._pieces += self._reader.flush()
        self.finished = Finished(
            sequence_id=self.sequence_id,
            reason=reason,
            num_prompt_tokens=self.open.num_prompt_tokens,
            num_tokens=num_tokens,
            cached_tokens=self.cached_tokens or 0,
            stop_reason=stop_reason,
            error=error,
            reasoning_tokens=self._reasoning_tokens,
            forced_tokens=self._forced_tokens,
        )
