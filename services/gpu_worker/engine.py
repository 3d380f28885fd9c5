"""The step loop's logic: commands in, steps of the model, news out. Knows neither asyncio nor the broker.

A step computes one token of every sequence that decodes and, after those, prompt tokens of the sequences in
prefill, strictly in the order of admission: a sequence may rely on pages that one admitted before it fills. A
sequence whose pages are full stands still until it is granted more.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.executor import NO_TOKEN, Chunk, Executor, Launch
from services.gpu_worker.report import Report, Stages
from services.gpu_worker.sequence import Sequence
from shared.errors import InternalError, RequestError
from shared.messages import Admit, Drop, Ended, FinishReason, Grant, Plan, Retract

log = logging.getLogger(__name__)

PREFILL_SHARE = 4
"""However many sequences decode, a step has room for a quarter of the prefill budget."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """How many tokens a step computed."""

    num_prefill: int
    num_decode: int


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was launched and whose tokens were not looked at yet. chunks: with their sequences' serials."""

    decode: DecodeSet
    chunks: list[tuple[Chunk, int]]
    launch: Launch


class Engine:
    """Every sequence is in exactly one of four places, in order of arrival there: in prefill, in decode, stalled (in
    decode, but its pages are full), or ending (the step that computes its last token is under way).

    Up to `executor.run_ahead` steps are under way while the next one is launched. What a step needs to know of the
    sequences is counted when it is launched; what its tokens mean (who ended, what to report) is found out when it is
    taken. A sequence that turns out to have ended may thus be in the step after, whose token for it is dropped;
    its pages take that step's writes before those of anybody who gets them next, as steps run in order.

    clock: unix seconds, for epochs and spans."""

    def __init__(self, executor: Executor, prefill_budget: int, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._prefill_budget = prefill_budget
        self._clock = clock
        self._epoch = 0
        self._decode: DecodeSet | None = None
        self.reset()

    def reset(self, above: int = 0) -> None:
        """Forgets everything and begins a new epoch, greater than any before it and than `above`."""
        self._epoch = max(int(self._clock() * 1000), self._epoch + 1, above + 1)
        self._applied = 0
        self._prefilling: dict[int, Sequence] = {}
        self._decoding: dict[int, Sequence] = {}
        self._stalled: dict[int, Sequence] = {}
        self._ending: dict[int, Sequence] = {}
        self._free_seats = list(range(self._executor.num_seats - 1, -1, -1))
        self._flights: deque[_Flight] = deque()
        self._decode = None
        self._has_news = True
        self._report = Report(self._epoch, 0)

    # ---------------------------------------------------------------------------------- commands

    def apply(self, plan: Plan) -> None:
        """Applies a plan in its turn: skips one that is late or known, begins a new epoch at a gap."""
        if plan.epoch < self._epoch:
            return
        if plan.epoch == self._epoch and plan.number <= self._applied:
            return
        if plan.epoch > self._epoch or plan.number != self._applied + 1:
            log.error(
                "plan %d/%d does not follow %d/%d: starting afresh",
                plan.epoch,
                plan.number,
                self._epoch,
                self._applied,
            )
            self.reset(above=plan.epoch)
            return
        for command in plan.commands:
            self._apply(command)
        self._applied = plan.number
        self._has_news = True

    def _apply(self, command: Admit | Grant | Drop | Retract) -> None:
        match command:
            case Admit():
                self._admit(command)
            case Grant():
                self._grant(command)
            case Drop(sequence_ids=ids):
                for sequence_id in ids:
                    self._take_away(sequence_id)
            case Retract(sequence_ids=ids):
                self._report.retracted += [one for one in ids if self._take_away(one)]

    def _admit(self, admit: Admit) -> None:
        if self._take_away(admit.sequence_id):
            log.error("sequence %d was admitted while it ran: starting it anew", admit.sequence_id)
        try:
            sequence = Sequence.admit(admit, self._executor, self._clock())
            if not self._free_seats:
                raise InternalError(f"the scheduler admitted more than {self._executor.num_seats} sequences")
        except RequestError as error:
            log.error("sequence %d cannot be run: %s", admit.sequence_id, error)
            self._report.add_end(
                admit.shard,
                Ended(
                    sequence_id=admit.sequence_id,
                    reason=FinishReason.ERROR,
                    num_tokens=max(len(admit.token_ids) // 4 - admit.num_prompt, 0),
                    error=error.body(),
                    attempt=admit.attempt,
                ),
            )
            return
        if sequence.num_outputs >= sequence.max_tokens:
            self._end(sequence, sequence.ended(FinishReason.LENGTH))
        else:
            sequence.seat = self._free_seats.pop()
            self._executor.seat(sequence)
            self._prefilling[sequence.id] = sequence

    def _grant(self, grant: Grant) -> None:
        sequence = self._find(grant.sequence_id)
        if sequence is None:
            return
        try:
            sequence.grant(grant, self._executor.num_pages)
        except InternalError as error:
            self._remove(sequence)
            self._end(sequence, sequence.ended(FinishReason.ERROR, error=error))
            return
        self._executor.extend(sequence)
        if sequence.id in self._stalled and sequence.room > 0:
            del self._stalled[sequence.id]
            self._join_decode(sequence)

    def _take_away(self, sequence_id: int) -> bool:
        """Forgets a sequence on the scheduler's behalf; whether it was there."""
        sequence = self._find(sequence_id)
        if sequence is None:
            return False
        self._remove(sequence)
        self._note_stages(sequence, None)
        return True

    def _find(self, sequence_id: int) -> Sequence | None:
        for place in (self._decoding, self._prefilling, self._stalled, self._ending):
            if sequence_id in place:
                return place[sequence_id]
        return None

    def _remove(self, sequence: Sequence) -> None:
        """Takes a sequence out of its place; what is under way for it will be dropped."""
        if self._decoding.pop(sequence.id, None) is not None:
            self._dissolve()
        for place in (self._prefilling, self._stalled, self._ending):
            place.pop(sequence.id, None)
        sequence.serial += 1
        self._free_seats.append(sequence.seat)

    # ------------------------------------------------------------------------------------- steps

    def step(self) -> StepSize | None:
        """Launches a step and takes the tokens of those before it that are due; None if there is nothing to do.

        An exception leaves the engine fit for `reset` only."""
        decode = self._decode_set()
        chunks, copies = self._plan_prefill()
        if decode.sequences or chunks:
            self._launch(decode, chunks, copies)
        elif not self._flights:
            return None
        is_over = not decode.sequences and not chunks
        while len(self._flights) > (0 if is_over else self._executor.run_ahead):
            self._take(self._flights.popleft())
        self._has_news = True
        self._set_aside()
        return StepSize(sum(len(chunk.step.token_ids) for chunk in chunks), len(decode))

    def _decode_set(self) -> DecodeSet:
        self._set_aside()
        if self._decode is None:
            self._decode = DecodeSet(list(self._decoding.values()))
        return self._decode

    def _set_aside(self) -> None:
        """Moves sequences out of decode that cannot have one more token computed now."""
        if self._decode is not None and (not self._decode.sequences or self._decode.can_step()):
            return
        self._dissolve()
        for sequence in list(self._decoding.values()):
            if sequence.num_sampled >= sequence.max_tokens:
                self._ending[sequence.id] = self._decoding.pop(sequence.id)
            elif sequence.room <= 0:
                self._stalled[sequence.id] = self._decoding.pop(sequence.id)
                self._has_news = True

    def _dissolve(self) -> None:
        """The set of sequences in decode is not the same any more."""
        if self._decode is not None:
            self._decode.settle()
            self._decode = None

    def _join_decode(self, sequence: Sequence) -> None:
        self._decoding[sequence.id] = sequence
        self._dissolve()

    def _launch(self, decode: DecodeSet, chunks: list[Chunk], copies: list[tuple[int, int]]) -> None:
        if copies:
            self._executor.copy_pages(copies)
        launch = self._executor.launch(decode, chunks)
        launch.sample()
        decode.launched += 1
        self._flights.append(_Flight(decode, [(chunk, chunk.sequence.serial) for chunk in chunks], launch))
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.step.end
            if chunk.step.wants_logits:
                sequence.num_sampled += 1
                del self._prefilling[sequence.id]
                self._join_decode(sequence)

    def _plan_prefill(self) -> tuple[list[Chunk], list[tuple[int, int]]]:
        """The next chunks under the budget, in order of admission, and the page copies that must come first."""
        chunks: list[Chunk] = []
        copies: list[tuple[int, int]] = []
        if not self._prefilling:
            return chunks, copies
        budget = max(self._prefill_budget - len(self._decoding), self._prefill_budget // PREFILL_SHARE, 1)
        for sequence in self._prefilling.values():
            num_tokens = min(sequence.num_uncomputed, sequence.room, budget)
            if num_tokens <= 0:
                break
            if sequence.copy_from is not None:
                if _writes(chunks, sequence.copy_from, sequence.page_size):
                    break  # the page to copy is filled by this very step
                copies.append((sequence.copy_from, sequence.page_table[sequence.cached // sequence.page_size]))
                sequence.copy_from = None
            chunks.append(Chunk(sequence, sequence.prefill(num_tokens)))
            budget -= num_tokens
            if num_tokens < sequence.num_uncomputed:
                break  # nobody overtakes
        return chunks, copies

    def _take(self, flight: _Flight) -> None:
        """Looks at the tokens of a step."""
        tokens = flight.launch.tokens()
        num_decode = len(flight.decode)
        over = flight.decode.take(tokens[:num_decode], self._report)
        sampled = iter(tokens[num_decode:].tolist())
        for chunk, serial in flight.chunks:
            token = next(sampled) if chunk.step.wants_logits else None
            sequence = chunk.sequence
            if sequence.serial != serial:
                continue
            self._report.computed[sequence.id] = chunk.step.end
            if token is not None and self._is_last(sequence, token):
                over.append((sequence, token))
        for sequence, token in over:
            self._end_with(sequence, token)

    def _is_last(self, sequence: Sequence, token: int) -> bool:
        """Tells of the token that follows a sequence's prefill, and whether that is its last."""
        if token == NO_TOKEN:
            return True
        sequence.first_token_at = self._clock()
        if sequence.num_outputs == 0:
            self._report.add_cached(sequence.shard, sequence.id, sequence.cached_prompt)
        self._report.add_token(sequence.shard, sequence.id, sequence.num_outputs, token)
        sequence.num_outputs += 1
        return token in sequence.stop_token_ids or sequence.num_outputs >= sequence.max_tokens

    def _end_with(self, sequence: Sequence, token: int) -> None:
        """Ends a sequence for its newest token."""
        self._remove(sequence)
        if token == NO_TOKEN:
            log.error("sequence %d: the logits are no numbers", sequence.id)
            error = InternalError("the model computed no valid probabilities for this request")
            self._end(sequence, sequence.ended(FinishReason.ERROR, error=error))
        elif token in sequence.stop_token_ids:
            self._end(sequence, sequence.ended(FinishReason.STOP, stop_token_id=token))
        else:
            self._end(sequence, sequence.ended(FinishReason.LENGTH))

    # -------------------------------------------------------------------------------------- news

    def take_report(self) -> Report | None:
        """What happened since the last report; None if nothing did. Begins a new one."""
        if not self._has_news:
            return None
        report = self._report
        report.applied = self._applied
        report.stalled = self._stalled_ids()
        self._has_news = False
        self._report = Report(self._epoch, self._applied)
        return report

    def _stalled_ids(self) -> list[int]:
        stalled = list(self._stalled)
        head = next(iter(self._prefilling.values()), None)
        if head is not None and head.room <= 0:
            stalled.append(head.id)
        return stalled

    def _end(self, sequence: Sequence, ended: Ended) -> None:
        self._report.add_end(sequence.shard, ended)
        self._note_stages(sequence, ended)

    def _note_stages(self, sequence: Sequence, ended: Ended | None) -> None:
        if sequence.traceparent is None:
            return
        self._report.stages.append(
            Stages(
                sequence_id=sequence.id,
                traceparent=sequence.traceparent,
                attempt=sequence.attempt,
                num_prompt=sequence.num_prompt,
                num_outputs=sequence.num_outputs,
                cached=min(sequence.cached, sequence.num_prompt),
                admitted_at=sequence.admitted_at,
                first_token_at=sequence.first_token_at,
                over_at=self._clock(),
                ended=ended,
            )
        )

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def num_prefilling(self) -> int:
        return len(self._prefilling)

    @property
    def num_decoding(self) -> int:
        return len(self._decoding) + len(self._ending)

    @property
    def num_stalled(self) -> int:
        return len(self._stalled)


def _writes(chunks: list[Chunk], page: int, page_size: int) -> bool:
    """Whether one of the chunks writes to the page."""
    parts = [chunk.step for chunk in chunks]
    return any(page in part.page_table[part.start // page_size : (part.end - 1) // page_size + 1] for part in parts)
