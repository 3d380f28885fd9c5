"""Forced runs: text that a grammar leaves no choice about, as the tokens that the tokenizer would make of it.

Tokens that were sent cannot be taken back, so a run begins where they end; within it the tokenizer decides, with the
text before as context. The run's last tokens are kept back if a longer token could take their place: the text that
comes after is the model's choice, and in its training data that longer token would stand there.
"""

from collections.abc import Sequence

from services.gpu_worker.grammar.matcher import Matcher, allows_any, empty_mask
from services.gpu_worker.grammar.vocabulary import Vocabulary

CONTEXT_TOKENS = 8
"""Tokens before the run that the tokenizer sees: more than one of its words."""
MAX_RUN_BYTES = 4096
"""Text that is looked at in one go; what is longer comes in several runs."""
MAX_KEPT_BACK = 8
"""Tokens at the end of a run that a longer one could replace."""
NEUTRAL = b"\n"
"""Begins the context: at the start of a text some tokenizers put a space in front."""


def forced_run(matcher: Matcher, vocabulary: Vocabulary, before: Sequence[int], limit: int) -> list[int]:
    """At most `limit` tokens that must follow, maybe none; the matcher accepts them. before: the tokens so far."""
    text = matcher.forced_text()
    if not text or limit < 1:
        return []
    run = _tokenise(vocabulary, before[-CONTEXT_TOKENS:], text[:MAX_RUN_BYTES])[:limit]
    for i, token_id in enumerate(run):
        if not matcher.accept(token_id):
            run = run[:i]
            break
    kept = _final(matcher, vocabulary, run)
    return run[:kept]


def _tokenise(vocabulary: Vocabulary, before: Sequence[int], text: bytes) -> list[int]:
    """Tokens whose bytes are `text`, or `text` without the half character at its end; none if there are no such."""
    context = b""
    for token_id in before:
        part = vocabulary.token_bytes[token_id]
        context = context + part if part else b""  # nothing merges across a special token
    context = NEUTRAL + context.lstrip(_CONTINUATION)
    whole = _without_half_character(context + text)
    length = len(whole) - len(context)
    if length <= 0:
        return []
    for start in (0, len(context)):  # alone, if the tokenizer would merge it with what was sent
        try:
            said = whole[start:].decode()
        except UnicodeDecodeError:
            continue
        tokens = _tail(vocabulary, vocabulary.backend.encode(said, add_special_tokens=False).ids, length)
        if tokens and vocabulary.text_of(tokens) == whole[len(context) :]:
            return tokens
    return []


def _tail(vocabulary: Vocabulary, token_ids: list[int], length: int) -> list[int]:
    """The last tokens, those whose bytes are `length`; none if no token begins there."""
    for start in range(len(token_ids) - 1, -1, -1):
        length -= len(vocabulary.token_bytes[token_ids[start]])
        if length <= 0:
            return token_ids[start:] if length == 0 else []
    return []


def _final(matcher: Matcher, vocabulary: Vocabulary, run: list[int]) -> int:
    """How many of the run's tokens no longer token can replace. Takes the others back from the matcher."""
    mask = empty_mask(vocabulary.vocab_size)
    taken_back = 0
    kept = len(run)
    for start in range(len(run) - 1, max(len(run) - 1 - MAX_KEPT_BACK, -1), -1):
        longer = vocabulary.longer_than(vocabulary.text_of(run[start:]))
        if not len(longer):
            continue
        matcher.rollback(len(run) - start - taken_back)
        taken_back = len(run) - start
        matcher.fill(mask)
        if allows_any(mask, longer):
            kept = start
    for token_id in run[len(run) - taken_back : kept]:
        accepted = matcher.accept(token_id)
        assert accepted, "a grammar took a token once and not again"
    return kept


_CONTINUATION = bytes(range(0x80, 0xC0))


def _without_half_character(text: bytes) -> bytes:
    """Without the bytes at the end that begin a character."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return text[:-back] if width > back else text
    return text
