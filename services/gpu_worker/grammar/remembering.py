"""A matcher that remembers what others found out in the same state of the grammar.

Behind it is a grammar engine's matcher, which is asked where nobody was before, and is told of the tokens only then.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from services.gpu_worker.grammar.automaton import Automaton, State, TooManyStates
from services.gpu_worker.grammar.matcher import I32
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.grammar.xgrammar_matcher import XGrammarMatcher

log = logging.getLogger(__name__)


class RememberingMatcher:
    """state: None before there is an automaton, and once it cannot follow; the other matcher then does all the work.
    automaton: of which the state is."""

    def __init__(
        self,
        matcher: XGrammarMatcher,
        find_automaton: Callable[[], Automaton | None],
        vocabulary: Vocabulary,
        stop_token_ids: frozenset[int],
    ) -> None:
        """find_automaton: None if it is not there yet, TooManyStates if there will be none."""
        self._matcher = matcher
        self._find_automaton: Callable[[], Automaton | None] | None = find_automaton
        self.automaton: Automaton | None = None
        self._vocabulary = vocabulary
        self._stop_token_ids = stop_token_ids
        self._states: list[State] = []
        self._before: list[int] = []
        self._untold: list[int] = []
        self.state: State | None = None
        self._find()

    def _find(self) -> None:
        """Goes over to the automaton, if it is there, by the tokens so far."""
        assert self._find_automaton is not None
        try:
            automaton = self._find_automaton()
            if automaton is None:
                return
            state: State | None = automaton.start
            states = [automaton.start]
            for token_id in self._before:
                state = self._walk(automaton, states[-1], token_id)
                if state is None:
                    break
                states.append(state)
        except TooManyStates:
            state = None
        self._find_automaton = None
        self._before.clear()
        if state is not None:
            self.automaton, self._states, self.state = automaton, states, state

    def _walk(self, automaton: Automaton, state: State, token_id: int) -> State | None:
        text = self._vocabulary.token_bytes[token_id]
        return automaton.walk(state, text) if text and token_id not in self._stop_token_ids else None

    def accept(self, token_id: int) -> bool:
        if self._find_automaton is not None:
            self._find()
        state = self.state
        if state is not None:
            assert self.automaton is not None
            try:
                state = self._walk(self.automaton, state, token_id)
            except TooManyStates:
                state = None
            if state is not None:
                self.state = state
                self._states.append(state)
                self._untold.append(token_id)
                return True
            try:
                self._tell()
            except RuntimeError:
                log.exception("the answer cannot go on")
                return False
        is_accepted = self._matcher.accept(token_id)
        if is_accepted:
            self.state = None
            if self._find_automaton is not None:
                self._before.append(token_id)
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
        elif num_tokens:
            del self._before[-num_tokens:]

    def fill(self, mask: I32) -> None:
        state = self.state
        if state is not None and state.mask is not None:
            mask[:] = state.mask
            return
        self._tell()
        self._matcher.fill(mask)
        if state is not None:
            self._remember(state, mask)

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

    def _remember(self, state: State, mask: I32) -> None:
        assert self.automaton is not None
        [is_decided] = self._vocabulary.are_decided(mask[None], np.zeros(1, np.int64)).tolist()
        self.automaton.remember_mask(state, mask, is_decided=is_decided)

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
                matcher._remember(matcher.state, bits[row])
