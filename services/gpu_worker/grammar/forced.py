"""Forced runs: text that a grammar leaves no choice about, as the tokens that the tokenizer would make of it.

Tokens that were sent cannot be taken back, so a run begins where they end; within it the tokenizer decides, with the
text before as context. The run's last tokens are kept back if a longer token could take their place: the text that
comes after is the model's choice, and in its training data that longer token would stand there.
"""

from collections.abc import Sequence

import numpy as np

from services.gpu_worker.grammar.matcher import I32, Matcher
from services.gpu_worker.grammar.vocabulary import Vocabulary

CONTEXT_TOKENS = 8
"""Tokens before the run that the tokenizer sees: more than one of its words."""
MAX_RUN_BYTES = 4096
"""Text that is looked at in one go; what is longer comes in several runs."""
MAX_KEPT_BACK = 8
"""Tokens at the end of a run that a longer one could replace."""
SPACE = b" "


def forced_run(matcher: Matcher, vocabulary: Vocabulary, before: Sequence[int], limit: int) -> list[int]:
    """At most `limit` tokens that must follow, maybe none; the matcher accepts them. before: the tokens so far."""
    text = matcher.forced_text()
    if not text or limit < 1:
        return []
    word = _last_word(vocabulary, _context(vocabulary, before[-CONTEXT_TOKENS:]), text)
    whole = vocabulary.tokens_behind(word, text[:MAX_RUN_BYTES])
    state = matcher.state
    run = _checked(matcher, vocabulary, whole[:limit])
    if state is not None and len(whole) <= limit:
        state.remember_run(word, tuple(run), len(whole))
    return list(run)


def known_run(matcher: Matcher, vocabulary: Vocabulary, before: Sequence[int], limit: int) -> list[int] | None:
    """As `forced_run`, where that was called in the same state before, behind the same word; else None."""
    state = matcher.state
    if state is None or state.forced is None:
        return None
    if not state.forced:
        return []
    found = state.runs.get(_last_word(vocabulary, _context(vocabulary, before[-CONTEXT_TOKENS:]), state.forced))
    if found is None:
        return None
    run, least = found
    if least > limit:
        return None
    for token_id in run:
        if not matcher.accept(token_id):
            raise RuntimeError(f"token {token_id} of a forced run is not taken where it was before")
    return list(run)


def _checked(matcher: Matcher, vocabulary: Vocabulary, run: Sequence[int]) -> Sequence[int]:
    """The tokens of the run that cannot but be these; the matcher accepts them."""
    longer = dict(vocabulary.replacements(tuple(run[-MAX_KEPT_BACK:])))
    for i, token_id in enumerate(run):
        replacing = longer.get(len(run) - i)
        if replacing is not None and _allows_any(matcher, replacing):
            return run[:i]
        if not matcher.accept(token_id):
            matcher.rollback(i)
            return ()
    return run


def _context(vocabulary: Vocabulary, before: Sequence[int]) -> bytes:
    """The text of the tokens behind the last special one."""
    context = b""
    for token_id in before:
        part = vocabulary.token_bytes[token_id]
        context = context + part if part else b""  # nothing merges across a special token
    return context


def _last_word(vocabulary: Vocabulary, context: bytes, text: bytes) -> bytes:
    """The part of the context that can tell how the text is cut: none where no token can lie across the border; else
    the last word, as a space begins a word to every tokenizer. Short, so that the same question comes again.
    A character that the context began stays whole."""
    is_whole = text[0] & 0xC0 != 0x80
    if not context or (is_whole and not vocabulary.can_join(context, text)):
        return b""
    if text[:1] == SPACE and not context[-1:].isspace():
        return b""
    return context[max(context.rstrip().rfind(SPACE), 0) :]


def _allows_any(matcher: Matcher, tokens: I32) -> bool:
    """Whether one of the tokens in the mask row may follow."""
    mask = np.empty_like(tokens)
    matcher.fill(mask)
    return bool((mask & tokens).any())
