"""A matcher that remembers what others found out in the same state of the grammar.

Behind it is a grammar engine's matcher, which is asked where nobody was before, and is told of the tokens only then.
"""

from collections.abc import Sequence

import numpy as np

from services.gpu_worker.grammar.automaton import Automaton, State, TooManyStates
from services.gpu_worker.grammar.matcher import I32
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.grammar.xgrammar_matcher import XGrammarMatcher


class RememberingMatcher:
    """state: None once the automaton cannot follow; from then on the other matcher does all the work."""

    def __init__(
        self, matcher: XGrammarMatcher, automaton: Automaton, vocabulary: Vocabulary, stop_token_ids: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self._automaton = automaton
        self._vocabulary = vocabulary
        self._stop_token_ids = stop_token_ids
        self._states = [automaton.start]
        self._untold: list[int] = []
        self.state: State | None = automaton.start

    def accept(self, token_id: int) -> bool:
        state = self.state
        if state is not None:
            text = self._vocabulary.token_bytes[token_id]
            if text and token_id not in self._stop_token_ids:
                try:
                    state = self._automaton.walk(state, text)
                except TooManyStates:
                    state = None
                if state is not None:
                    self.state = state
                    self._states.append(state)
                    self._untold.append(token_id)
                    return True
            self._tell()
        is_accepted = self._matcher.accept(token_id)
        if is_accepted:
            self.state = None
        return is_accepted

    def rollback(self, num_tokens: int) -> None:
        untold = min(num_tokens, len(self._untold))
        if untold:
            del self._untold[-untold:]
        if num_tokens > untold:
            self._matcher.rollback(num_tokens - untold)
        if self.state is not None and num_tokens:
            del self._states[-num_tokens:]
            self.state = self._states[-1]

    def fill(self, mask: I32) -> None:
        state = self.state
        if state is not None and state.mask is not None:
            mask[:] = state.mask
            return
        self._tell()
        self._matcher.fill(mask)
        if state is not None:
            self._remember([state], mask[None])

    def can_end(self) -> bool:
        return self.state.can_end if self.state is not None else self._matcher.can_end()

    def forced_text(self) -> bytes:
        state = self.state
        if state is None:
            return self._matcher.forced_text()
        if state.forced is None:
            self._tell()
            state.forced = self._matcher.forced_text()
        return state.forced

    def _tell(self) -> None:
        """Brings the other matcher to where this one is."""
        for token_id in self._untold:
            if not self._matcher.accept(token_id):
                raise RuntimeError(f"token {token_id} is against the grammar, but not against its automaton")
        self._untold.clear()

    def _remember(self, states: Sequence[State], masks: I32) -> None:
        decided = self._vocabulary.are_decided(masks, np.arange(len(masks)))
        for state, mask, is_decided in zip(states, masks, decided.tolist(), strict=True):
            self._automaton.remember_mask(state, mask, is_decided=is_decided)

    @classmethod
    def accept_many(cls, matchers: "Sequence[RememberingMatcher]", token_ids: Sequence[int]) -> list[bool]:
        return [matcher.accept(token_id) for matcher, token_id in zip(matchers, token_ids, strict=True)]

    @classmethod
    def fill_many(cls, matchers: "Sequence[RememberingMatcher]", bits: I32, rows: Sequence[int]) -> None:
        others = []
        for matcher, row in zip(matchers, rows, strict=True):
            state = matcher.state
            if state is not None and state.mask is not None:
                bits[row] = state.mask
            else:
                others.append((matcher, row))
        if not others:
            return
        for matcher, _ in others:
            matcher._tell()
        XGrammarMatcher.fill_many([matcher._matcher for matcher, _ in others], bits, [row for _, row in others])
        for matcher, row in others:
            if matcher.state is not None and matcher.state.mask is None:
                matcher._remember([matcher.state], bits[row : row + 1])
