"""Token ids to text, one id at a time: a `TextStream` a sequence gives out text as soon as it is certain.

Text is certain once it does not end in the middle of a character. `tokenizers`' DecodeStream does the common
case; this file adds what it leaves open: a prompt that ends inside a character, bytes that never become one, and
what is left at the end. The pieces of a sequence joined are its tokens decoded as a whole.
"""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\ufffd"
MAX_CHARACTER_TOKENS = 4
MAX_HELD = 16
"""Tokens held back at most: so many that are no whole character will not become one."""


class Detokenizer:
    """A model's token ids to text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self.special_ids = frozenset(self._special)
        self.neutral = self._neutral_context()

    def _neutral_context(self) -> list[int]:
        """Ids of plain text, to stand for "not at the start of a text", where some decoders strip a space."""
        for word in ("a", "e", "1", "."):
            ids = self.tokenizer.encode(word, add_special_tokens=False).ids
            if ids and self.tokenizer.decode(ids).strip() == word:
                return ids
        return []

    def stream(self, prompt_tail: Sequence[int], skip_special_tokens: bool, kept: Collection[str] = ()) -> "TextStream":
        """For the tokens that follow a prompt which ends in `prompt_tail` (empty: nothing comes before). kept: special
        tokens that are not skipped."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        if kept and skipped:
            skipped = frozenset(token_id for token_id in skipped if self._special[token_id] not in kept)
        return TextStream(self, prompt_tail, skipped)


class TextStream:
    """One sequence's tokens to text."""

    __slots__ = ("_context", "_detokenizer", "_echo", "_held", "_skip", "_skipped_ids", "_stream", "_tokenizer")

    def __init__(self, detokenizer: Detokenizer, prompt_tail: Sequence[int], skipped_ids: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._tokenizer = detokenizer.tokenizer
        self._skipped_ids = skipped_ids
        self._skip = bool(skipped_ids) and skipped_ids == detokenizer.special_ids
        self._held: list[int]  # tokens whose text has not come out
        self._context: list[int]  # tokens that those follow; they end a character
        self._stream: DecodeStream
        self._echo = ""  # text of the held tokens that are the prompt's
        tail = [token_id for token_id in prompt_tail if token_id not in self._skipped_ids]
        whole = self._whole_characters(tail)
        self._start(tail[:whole] if whole or not tail else detokenizer.neutral)
        if whole is not None and whole < len(tail):
            for token_id in tail[whole:]:
                self.push(token_id)
            self._echo = self._text(self._held)

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; empty while it may be part of a character."""
        if token_id in self._skipped_ids or token_id < 0:
            return ""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # all that `tokenizers` raises: what came out before is not the start of the new text
            return self._release(len(self._held))
        if text is None:
            return self._release(self._certain()) if len(self._held) >= MAX_HELD else ""
        self._context, self._held = self._held, []
        return self._without_echo(text) if self._echo else text

    def flush(self) -> str:
        """What was held back, as the tokenizer decodes it; for the end of the sequence."""
        return self._release(len(self._held)) if self._held else ""

    def _whole_characters(self, tail: list[int]) -> int | None:
        """How many of the prompt's last tokens end with a character's end; None when that is not to be seen."""
        for whole in range(len(tail), max(len(tail) - MAX_CHARACTER_TOKENS, 0) - 1, -1):
            if not self._decode(tail[:whole]).endswith(REPLACEMENT):
                return whole
        return None

    def _start(self, context: list[int]) -> None:
        self._context, self._held = context, []
        self._stream = DecodeStream(ids=context, skip_special_tokens=self._skip)

    def _release(self, count: int) -> str:
        """Lets the first `count` held tokens go as they are and holds the rest."""
        given, kept = self._held[:count], self._held[count:]
        before, whole = self._decode(self._context), self._decode(self._context + given)
        text = whole[len(before) :] if whole.startswith(before) else self._text(given)
        text = self._without_echo(text)
        self._start(self._detokenizer.neutral)
        return text + "".join(map(self.push, kept))

    def _certain(self) -> int:
        """How many of the held tokens cannot be part of a character that is still to be completed: up to a place
        where cutting changes no text, ahead of the last ones."""
        whole = self._text(self._held)
        for kept in range(MAX_CHARACTER_TOKENS - 1, 0, -1):
            if self._text(self._held[:-kept]) + self._text(self._held[-kept:]) == whole:
                return len(self._held) - kept
        return len(self._held)

    def _without_echo(self, text: str) -> str:
        """Without what the prompt shows already: its characters before the half one, or all of it when that was no
        half character after all."""
        echo, self._echo = self._echo, ""
        differ = (place for place, (one, other) in enumerate(zip(echo, text, strict=False)) if one != other)
        return text[next(differ, min(len(echo), len(text))) :]

    def _text(self, ids: list[int]) -> str:
        """Text of ids in the middle of a text."""
        before = self._decode(self._detokenizer.neutral)
        return self._decode(self._detokenizer.neutral + ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
