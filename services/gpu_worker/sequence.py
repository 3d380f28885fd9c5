"""A sequence under lease: its pages, how far it is computed, how it is sampled and when it ends."""

from array import array
from dataclasses import dataclass

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.sampling_state import SamplingState
from services.gpu_worker.step import Pool, SequenceStep
from shared.errors import InternalError, InvalidRequest, RequestError
from shared.messages import Admit, Ended, FinishReason, Grant
from shared.packing import unpack_i32


@dataclass(slots=True, eq=False)
class Sequence:
    """token_ids: what it was admitted with, num_admitted tokens; of a sequence with a grammar also what came out since,
    and what the grammar forces next. computed: tokens whose keys and values are in its pages, or will be once the steps
    under way are done. num_sampled: output tokens, those that are under way or forced included; num_outputs: those that
    were told. serial: a step's token counts only if it is the same as when the step was launched.

    grammar: key of the grammar that its output must match, or empty; guide: there once the grammar is. ends: why it
    ends when all of token_ids is computed, without a token that is sampled; error: why it fails then."""

    id: int
    shard: int
    attempt: int
    num_prompt: int
    cached: int
    cached_prompt: int
    token_ids: "array[int]"
    page_table: "array[int]"
    page_size: int
    copy_from: int | None
    sampling: SamplingState
    stop_token_ids: frozenset[int]
    max_tokens: int
    traceparent: str | None
    admitted_at: float
    computed: int
    num_sampled: int
    num_outputs: int
    num_admitted: int
    grammar: str = ""
    guide: Guide | None = None
    ends: FinishReason | None = None
    error: RequestError | None = None
    seat: int = 0
    serial: int = 0
    first_token_at: float | None = None

    @classmethod
    def admit(cls, admit: Admit, pool: Pool, now: float) -> "Sequence":
        """Raises InvalidRequest when the model cannot run it, InternalError when the message makes no sense."""
        token_ids, page_table = _unpack(admit.token_ids), _unpack(admit.page_table)
        _check(admit, token_ids, pool)
        _check_pages(page_table, pool.num_pages)
        return cls(
            id=admit.sequence_id,
            shard=admit.shard,
            attempt=admit.attempt,
            num_prompt=admit.num_prompt,
            cached=admit.cached,
            cached_prompt=min(admit.cached, admit.num_prompt) if admit.cached_prompt is None else admit.cached_prompt,
            token_ids=token_ids,
            page_table=page_table,
            page_size=pool.page_size,
            copy_from=admit.copy_from,
            sampling=SamplingState(
                admit.sampling,
                admit.stop_token_ids,
                token_ids[: admit.num_prompt],
                token_ids[admit.num_prompt :],
                pool.vocab_size,
            ),
            stop_token_ids=frozenset(admit.stop_token_ids),
            max_tokens=min(admit.max_tokens, pool.max_model_len - admit.num_prompt),
            traceparent=admit.traceparent,
            admitted_at=now,
            computed=admit.cached,
            num_sampled=len(token_ids) - admit.num_prompt,
            num_outputs=len(token_ids) - admit.num_prompt,
            num_admitted=len(token_ids),
            grammar=admit.grammar,
        )

    @property
    def num_uncomputed(self) -> int:
        """Known tokens that are still to be computed."""
        return len(self.token_ids) - self.computed

    @property
    def room(self) -> int:
        """Tokens that the pages take beyond those computed."""
        return len(self.page_table) * self.page_size - self.computed

    def grant(self, grant: Grant, num_pages: int) -> None:
        """Raises InternalError when the message makes no sense."""
        pages = _unpack(grant.pages)
        _check_pages(pages, num_pages)
        self.page_table.extend(pages)

    def prefill(self, num_tokens: int) -> SequenceStep:
        """The step that computes the next `num_tokens` of the known ones; after the last a token is sampled, unless the
        sequence is over then or its grammar is not here yet."""
        end = self.computed + num_tokens
        is_sampled = end == len(self.token_ids) and self.ends is None and (not self.grammar or self.guide is not None)
        return SequenceStep(self.token_ids[self.computed : end], self.computed, self.page_table, is_sampled)

    def ended(
        self, reason: FinishReason, *, stop_token_id: int | None = None, error: RequestError | None = None
    ) -> Ended:
        return Ended(
            sequence_id=self.id,
            reason=reason,
            num_tokens=self.num_outputs,
            cached_tokens=self.cached_prompt,
            stop_token_id=stop_token_id,
            error=error.body() if error is not None else None,
            attempt=self.attempt,
        )


def _unpack(data: bytes) -> "array[int]":
    try:
        return unpack_i32(data)
    except ValueError as error:
        raise InternalError(f"the scheduler sent a broken array: {error}") from None


def _check(admit: Admit, token_ids: "array[int]", pool: Pool) -> None:
    if not 0 <= admit.cached < len(token_ids) or not 0 < admit.num_prompt <= len(token_ids):
        raise InternalError(
            f"the scheduler admitted {len(token_ids)} tokens, {admit.num_prompt} of them prompt, {admit.cached} cached"
        )
    if min(token_ids) < 0 or max(token_ids) >= pool.vocab_size:
        raise InvalidRequest(
            f"the prompt has token {next(t for t in token_ids if not 0 <= t < pool.vocab_size)}; "
            f"the model has tokens 0 to {pool.vocab_size - 1}",
            param="prompt",
        )
    if len(token_ids) >= pool.max_model_len:
        raise InvalidRequest(
            f"{len(token_ids)} tokens leave no room for an answer in a context of {pool.max_model_len}",
            param="prompt",
            code="context_length_exceeded",
        )
    if admit.copy_from is not None:
        _check_pages([admit.copy_from], pool.num_pages)
        if admit.cached // pool.page_size >= len(admit.page_table) // 4:
            raise InternalError("the scheduler asked for a copy into a page outside the page table")


def _check_pages(pages: "array[int] | list[int]", num_pages: int) -> None:
    if pages and not (min(pages) >= 0 and max(pages) < num_pages):
        raise InternalError(f"the scheduler named a page outside the pool of {num_pages}")
