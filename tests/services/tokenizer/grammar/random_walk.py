"""Answers drawn at random from the masks of a grammar, without a model: what is drawn must be valid.

A walk favours tokens that lead towards the end, or else few answers would be whole. Every walk goes the way of a
worker: a matcher, a mask, a token of the mask.
"""

import random
from collections.abc import Iterator

import numpy as np
import xgrammar

from services.tokenizer.grammar.compile import to_source
from shared.grammar import compile_source

MAX_CHARACTERS = 8192 * 16


def byte_vocabulary() -> xgrammar.TokenizerInfo:
    """Every byte, a few longer tokens of JSON, and an end."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [
        text.encode() for text in ('"}', '": ', '", "', '{"', "true", "false", "null", "ing", " the", "00", '"]')
    ]
    tokens.append(b"</s>")
    return xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[len(tokens) - 1])


class Walker:
    """Compiles constraints for one vocabulary and draws answers."""

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        self.info = info
        self.texts = info.decoded_vocab
        self.stops = info.stop_token_ids
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        closing = [any(char in text for char in b'"]}') for text in self.texts]
        self._closing = np.array(closing)

    def compile(self, kind: str, source: str) -> xgrammar.CompiledGrammar:
        """Raises Unenforceable."""
        return compile_source(self._compiler, to_source(kind, source, MAX_CHARACTERS))

    def answers(
        self,
        grammar: xgrammar.CompiledGrammar,
        count: int,
        seed: int = 0,
        max_tokens: int = 400,
        errors: str = "strict",
    ) -> Iterator[tuple[str, bool]]:
        """(text, whether it ended by itself). errors: what to do about bytes that are no text. A place where nothing
        may follow is an AssertionError."""
        draw = random.Random(seed)
        for _ in range(count):
            out, is_whole = self._walk(grammar, draw, max_tokens)
            yield out.decode(errors=errors if is_whole else "replace"), is_whole

    def _walk(self, grammar: xgrammar.CompiledGrammar, draw: random.Random, max_tokens: int) -> tuple[bytes, bool]:
        matcher = xgrammar.GrammarMatcher(grammar)
        mask = xgrammar.allocate_token_bitmask(1, self.info.vocab_size)
        haste = draw.choice([0.02, 0.1, 0.3, 0.6])
        out = b""
        for step in range(max_tokens):
            matcher.fill_next_token_bitmask(mask)
            bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: self.info.vocab_size].astype(bool)
            allowed = bits.nonzero()[0]
            assert len(allowed), f"nothing may follow {out[-200:]!r}"
            ends = [stop for stop in self.stops if bits[stop]]
            hurry = haste if step < max_tokens // 2 else 0.9
            if ends and draw.random() < max(hurry, 0.2):
                return out, True
            closing = (bits & self._closing).nonzero()[0]
            token = int(draw.choice(closing if len(closing) and draw.random() < hurry else allowed))
            assert matcher.accept_token(token)
            if token in self.stops:
                return out, True
            out += self.texts[token]
        return out, False
