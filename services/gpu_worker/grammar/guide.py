"""What the engine keeps of a constrained sequence: its matcher, its mask row, the run that is forced next."""

from collections.abc import Sequence

from services.gpu_worker.grammar.forced import forced_run
from services.gpu_worker.grammar.matcher import I32, Compiled, mask_of
from services.gpu_worker.grammar.vocabulary import Vocabulary
from shared.errors import InternalError


class Guide:
    """A sequence's way through its grammar.

    vocabulary: None turns forced runs off. mask: its row, int32 [mask_width(V)]; is_filled: whether it is for the next
    token."""

    def __init__(
        self,
        compiled: Compiled,
        stop_token_ids: Sequence[int],
        outputs: Sequence[int],
        vocabulary: Vocabulary | None,
        vocab_size: int,
        mask: I32,
    ) -> None:
        """outputs: what was generated before, when the sequence is taken over; stop_token_ids: each below V. Raises
        InternalError if the outputs do not match the grammar."""
        self.matcher = compiled.matcher(stop_token_ids)
        self.mask = mask
        self.is_filled = False
        self._stops = mask_of(stop_token_ids, vocab_size)
        self._vocabulary = vocabulary
        for i, token_id in enumerate(outputs):
            if not self.matcher.accept(token_id):
                raise InternalError(f"output token {i} of a sequence that was taken over does not match its grammar")

    def accept(self, token_id: int) -> bool:
        """Goes on by a token that was sampled; False if the grammar does not allow it."""
        self.is_filled = False
        return self.matcher.accept(token_id)

    def fill(self) -> None:
        """Makes the mask row that of the next token."""
        if not self.is_filled:
            self.matcher.fill(self.mask)
            self.is_filled = True

    def must_end(self) -> bool:
        """Whether nothing but a stop id may follow. Where the answer is not whole it may not be so."""
        if not self.matcher.can_end():
            return False
        self.fill()
        return not (self.mask & ~self._stops).any()

    def is_stuck(self) -> bool:
        """Whether nothing at all may follow: the vocabulary cannot spell what the grammar asks for."""
        self.fill()
        return not self.mask.any()

    def run(self, before: Sequence[int], limit: int) -> list[int]:
        """The tokens, at most `limit`, that must follow; they count as accepted. before: the tokens so far."""
        if self._vocabulary is None:
            return []
        run = forced_run(self.matcher, self._vocabulary, before, limit)
        if run:
            self.is_filled = False
        return run
