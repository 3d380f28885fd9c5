"""The step loop's logic: commands in, steps of the model, news out. Knows neither asyncio nor the broker.

A step computes one token of every sequence that decodes and, after those, prompt tokens of the sequences in
prefill, strictly in the order of admission: a sequence may rely on pages that one admitted before it fills. A
sequence whose pages are full stands still until it is granted more.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from services.gpu_worker.report import Report, Stages
from services.gpu_worker.sampler import Sampler
from services.gpu_worker.sequence import Sequence
from services.gpu_worker.step import Runner, SequenceStep
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


class _Decode:
    """The sequences that decode, as a step needs them; kept from step to step while they are the same."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self.steps = [sequence.decode for sequence in sequences]
        self.rows = [sequence.sampling for sequence in sequences]


class Engine:
    """Every sequence is in exactly one of three places, in order of arrival there: in prefill, in decode, or
    stalled (in decode, but its pages are full).

    clock: unix seconds, for epochs and spans."""

    def __init__(self, runner: Runner, sampler: Sampler, prefill_budget: int, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._sampler = sampler
        self._prefill_budget = prefill_budget
        self._clock = clock
        self._epoch = 0
        self._decode: _Decode | None = None
        self.reset()

    def reset(self, above: int = 0) -> None:
        """Forgets everything and begins a new epoch, greater than any before it and than `above`."""
        self._epoch = max(int(self._clock() * 1000), self._epoch + 1, above + 1)
        self._applied = 0
        self._prefilling: dict[int, Sequence] = {}
        self._decoding: dict[int, Sequence] = {}
        self._stalled: dict[int, Sequence] = {}
        self._forget_decode()
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
            sequence = Sequence.admit(admit, self._runner, self._clock())
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
            self._prefilling[sequence.id] = sequence

    def _grant(self, grant: Grant) -> None:
        sequence = self._find(grant.sequence_id)
        if sequence is None:
            return
        try:
            sequence.grant(grant, self._runner.num_pages)
        except InternalError as error:
            self._remove(sequence)
            self._end(sequence, sequence.ended(FinishReason.ERROR, error=error))
            return
        if sequence.id in self._stalled and sequence.room > 0:
            del self._stalled[sequence.id]
            self._decoding[sequence.id] = sequence
            self._forget_decode()

    def _take_away(self, sequence_id: int) -> bool:
        """Forgets a sequence on the scheduler's behalf; whether it was there."""
        sequence = self._find(sequence_id)
        if sequence is None:
            return False
        self._remove(sequence)
        self._note_stages(sequence, None)
        return True

    def _find(self, sequence_id: int) -> Sequence | None:
        return self._decoding.get(sequence_id) or self._prefilling.get(sequence_id) or self._stalled.get(sequence_id)

    def _remove(self, sequence: Sequence) -> None:
        if self._decoding.pop(sequence.id, None) is not None:
            self._forget_decode()
        self._prefilling.pop(sequence.id, None)
        self._stalled.pop(sequence.id, None)

    # ------------------------------------------------------------------------------------- steps

    def step(self) -> StepSize | None:
        """Computes one step; None if no sequence can go on. An exception leaves the engine fit for `reset` only."""
        decode = self._decode
        if decode is None:
            decode = self._decode = _Decode(list(self._decoding.values()))
        decoding, steps, rows = decode.sequences, decode.steps, decode.rows
        prefills, copies = self._plan_prefill()
        if not decoding and not prefills:
            return None
        if copies:
            self._runner.copy_pages(copies)
        if prefills:
            steps = steps + [part for _, part in prefills]
            rows = rows + [sequence.sampling for sequence, part in prefills if part.wants_logits]
        logits = self._runner.forward(steps)
        tokens = self._sampler.sample(logits, rows) if rows else []
        self._has_news = True
        for sequence, token in zip(decoding, tokens, strict=False):  # those that finish their prefill come after
            sequence.computed += 1
            self._take(sequence, token)
        self._finish_prefills(prefills, tokens[len(decoding) :])
        return StepSize(sum(len(part.token_ids) for _, part in prefills), len(decoding))

    def _plan_prefill(self) -> tuple[list[tuple[Sequence, SequenceStep]], list[tuple[int, int]]]:
        """The next chunks under the budget, in order of admission, and the page copies that must come first."""
        prefills: list[tuple[Sequence, SequenceStep]] = []
        copies: list[tuple[int, int]] = []
        if not self._prefilling:
            return prefills, copies
        budget = max(self._prefill_budget - len(self._decoding), self._prefill_budget // PREFILL_SHARE, 1)
        for sequence in self._prefilling.values():
            num_tokens = min(sequence.num_uncomputed, sequence.room, budget)
            if num_tokens <= 0:
                break
            if sequence.copy_from is not None:
                if _writes(prefills, sequence.copy_from, sequence.page_size):
                    break  # the page to copy is filled by this very step
                copies.append((sequence.copy_from, sequence.page_table[sequence.cached // sequence.page_size]))
                sequence.copy_from = None
            prefills.append((sequence, sequence.prefill(num_tokens)))
            budget -= num_tokens
            if num_tokens < sequence.num_uncomputed:
                break  # nobody overtakes
        return prefills, copies

    def _finish_prefills(self, prefills: list[tuple[Sequence, SequenceStep]], tokens: list[int | None]) -> None:
        sampled = iter(tokens)
        for sequence, part in prefills:
            sequence.computed = part.end
            self._report.computed[sequence.id] = part.end
            if part.wants_logits:
                del self._prefilling[sequence.id]
                self._decoding[sequence.id] = sequence
                self._forget_decode()
                self._take(sequence, next(sampled))

    def _take(self, sequence: Sequence, token: int | None) -> None:
        """What the sampler gave for a sequence in decode."""
        if token is None:
            log.error("sequence %d: the logits are no numbers", sequence.id)
            error = InternalError("the model computed no valid probabilities for this request")
            self._remove(sequence)
            self._end(sequence, sequence.ended(FinishReason.ERROR, error=error))
            return
        if sequence.first_token_at is None:
            sequence.first_token_at = self._clock()
            if sequence.num_outputs == 0:
                self._report.add_cached(sequence.shard, sequence.id, sequence.cached_prompt)
        self._report.add_token(sequence.shard, sequence.id, sequence.num_outputs, token)
        ended = sequence.accept(token)
        if ended is not None:
            self._remove(sequence)
            self._end(sequence, ended)
        elif sequence.room <= 0:
            self._remove(sequence)
            self._stalled[sequence.id] = sequence

    def _forget_decode(self) -> None:
        self._decode = None

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
        return len(self._decoding)

    @property
    def num_stalled(self) -> int:
        return len(self._stalled)


def _writes(prefills: list[tuple[Sequence, SequenceStep]], page: int, page_size: int) -> bool:
    """Whether one of the parts writes to the page."""
    return any(
        page in part.page_table[part.start // page_size : (part.end - 1) // page_size + 1] for _, part in prefills
    )
