"""The step loop's logic: commands in, steps of the model, news out. Knows neither asyncio nor the broker.

A step computes one token of every sequence that decodes and, after those, prompt tokens of the sequences in
prefill, strictly in the order of admission: a sequence may rely on pages that one admitted before it fills. A
sequence whose pages are full stands still until it is granted more.

A constrained sequence samples under the mask of its grammar. The masks are filled while the step computes, once the
tokens of the steps before are known. What its grammar forces is not sampled: it is computed as one chunk, ahead of the
prefills, and told when that is done. Where the device knows the run of a token by heart, the step that computes the
token computes the run as well: before the next token is sampled, the grammar has said whether it is right, and if
not, the sequence goes back to that token.
"""

import logging
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from services.gpu_worker import metrics
from services.gpu_worker.constraints import Constraints
from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.executor import NO_TOKEN, Chunk, Executor, Launch
from services.gpu_worker.grammar.library import Grammars, NoGrammars
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.matcher import I32
from services.gpu_worker.grammar.prediction import Guesses
from services.gpu_worker.report import Report, Stages
from services.gpu_worker.run_guesses import Guessed, RunGuesses
from services.gpu_worker.sequence import Sequence
from services.gpu_worker.step import PREFILL_SHARE
from shared.errors import InternalError, RequestError
from shared.messages import Admit, Drop, Ended, FinishReason, Grant, Held, Plan, Retract
from shared.packing import pack_i32

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepSize:
    """How many tokens a step computed."""

    num_prefill: int
    num_decode: int


@dataclass(frozen=True, slots=True)
class _Run:
    """A forced run that a step computes ahead of the sequence's token. first: its first output's index."""

    sequence: Sequence
    serial: int
    first: int
    tokens: "array[int]"


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was launched and whose tokens were not looked at yet. chunks: with their sequences' serials. runs:
    those that were guessed, and hold."""

    decode: DecodeSet
    chunks: list[tuple[Chunk, int]]
    launch: Launch
    guesses: Guesses | None = None
    runs: list[_Run] = field(default_factory=list)


class Engine:
    """Every sequence is in exactly one of six places, in order of arrival there: in prefill, in decode, stalled (in
    decode, but its pages are full), in a run (which its grammar forces, or from its grammar's late arrival on), waiting
    (prefilled, without its grammar), or ending (the step that computes its last token is under way).

    Up to `executor.run_ahead` steps are under way while the next one is launched. What a step needs to know of the
    sequences is counted when it is launched; what its tokens mean (who ended, what to report) is found out when it is
    taken. A sequence that turns out to have ended may thus be in the step after, whose token for it is dropped;
    its pages take that step's writes before those of anybody who gets them next, as steps run in order.

    clock: unix seconds, for epochs and spans."""

    def __init__(
        self,
        executor: Executor,
        prefill_budget: int,
        clock: Callable[[], float],
        grammars: Grammars | None = None,
        *,
        mixed_budget: int | None = None,
        forces_runs: bool = True,
    ) -> None:
        """prefill_budget: prompt tokens of a step; mixed_budget: of one that other sequences wait for, None for as
        many."""
        self._executor = executor
        self._guesses = RunGuesses(executor.runs if forces_runs else None)
        self._constraints = Constraints(
            grammars or NoGrammars(),
            executor.vocab_size,
            executor.make_masks,
            self._guesses,
            forces_runs=forces_runs,
        )
        self._newest: I32 = np.zeros(executor.num_seats, np.int32)
        self._prefill_budget = prefill_budget
        self._mixed_budget = min(mixed_budget or prefill_budget, prefill_budget)
        self._clock = clock
        self._epoch = self._term = 0
        self._decode: DecodeSet | None = None
        self.reset()

    def reset(self, above: int = 0) -> None:
        """Forgets everything and begins a new epoch, greater than any before it and than `above`."""
        self._epoch = max(int(self._clock() * 1000), self._epoch + 1, above + 1)
        self._applied = 0
        self._is_asked = False
        self._prefilling: dict[int, Sequence] = {}
        self._decoding: dict[int, Sequence] = {}
        self._stalled: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._waiting: dict[int, Sequence] = {}
        self._ending: dict[int, Sequence] = {}
        self._unsampled: set[int] = set()
        self._unsampled_step: _Flight | None = None
        self._constraints.clear()
        self._free_seats = list(range(self._executor.num_seats - 1, -1, -1))
        self._flights: deque[_Flight] = deque()
        self._decode = None
        self._has_news = True
        self._report = Report(self._epoch, 0)

    # ---------------------------------------------------------------------------------- commands

    def apply(self, plan: Plan) -> None:
        """Applies a plan in its turn: skips one that is late or known, begins a new epoch at a gap."""
        if plan.term < self._term:
            log.warning("a plan of a scheduler that leads no more (term %d, now %d)", plan.term, self._term)
            return
        self._term = plan.term
        if plan.epoch < self._epoch:
            return
        if plan.epoch == self._epoch and plan.number == 0:
            self._is_asked = self._has_news = True
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
            if sequence.grammar:
                self._constraints.wait_for(sequence)

    def _grant(self, grant: Grant) -> None:
        sequence = self._find(grant.sequence_id)
        if sequence is None:
            return
        try:
            sequence.grant(grant, self._executor.num_pages)
        except InternalError as error:
            self._fail(sequence, error)
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
        for place in (
            self._decoding,
            self._prefilling,
            self._stalled,
            self._running,
            self._waiting,
            self._ending,
        ):
            if sequence_id in place:
                return place[sequence_id]
        return None

    def _remove(self, sequence: Sequence) -> None:
        """Takes a sequence out of its place; what is under way for it will be dropped."""
        if self._decoding.pop(sequence.id, None) is not None:
            self._dissolve()
        for place in (self._prefilling, self._stalled, self._running, self._waiting, self._ending):
            place.pop(sequence.id, None)
        self._constraints.forget(sequence)
        sequence.serial += 1
        self._free_seats.append(sequence.seat)

    # ------------------------------------------------------------------------------------- steps

    def step(self) -> StepSize | None:
        """Launches a step and takes the tokens of those before it that are due; None if there is nothing to do.

        An exception leaves the engine fit for `reset` only."""
        self._attach_grammars()
        decode = self._decode_set()
        chunks = self._plan_runs()
        copies = self._plan_prefill(chunks)
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

    def prepare(self) -> bool:
        """Gets ready for steps of other sizes, in a few hundredths of a second; whether there is more to do. When
        `step` found nothing to do. Never while a sequence is here: its next step may be due at any moment."""
        return len(self._free_seats) == self._executor.num_seats and self._executor.prepare()

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
        constrained = _constrained(decode, chunks)
        filling = None
        if constrained and not self._flights:
            filling = self._constraints.start([sequence for _, sequence, _ in constrained])
        guesses = self._guesses.ask(decode) if constrained and len(self._flights) == 1 else None
        launch = self._executor.launch(decode, chunks, guesses)
        decode.launched += 1
        flight = _Flight(decode, [(chunk, chunk.sequence.serial) for chunk in chunks], launch, guesses)
        for chunk in chunks:
            self._note_launched(chunk)
        if constrained:
            launch.sample(self._masks(flight, constrained, filling))
        else:
            launch.sample()
        self._flights.append(flight)

    def _note_launched(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        sequence.computed = chunk.step.end
        if sequence.num_uncomputed:
            return
        self._prefilling.pop(sequence.id, None)
        self._running.pop(sequence.id, None)
        if chunk.step.wants_logits:
            sequence.num_sampled += 1
            self._join_decode(sequence)
        elif sequence.ends is not None:
            self._ending[sequence.id] = sequence
        else:
            self._waiting[sequence.id] = sequence

    def _masks(
        self, flight: _Flight, constrained: list[tuple[int, Sequence, int]], filling: "Future[None] | None"
    ) -> Masks:
        """The masks of the step that was launched; takes the steps before it, whose tokens they depend on."""
        self._unsampled = {sequence.id for _, sequence, _ in constrained}
        self._unsampled_step = flight
        self._take_all()
        self._unsampled, self._unsampled_step = set(), None
        there = [(row, sequence) for row, sequence, serial in constrained if sequence.serial == serial]
        rows, sequences = [row for row, _ in there], [sequence for _, sequence in there]
        if filling is not None:
            filling.result()
        else:
            self._constraints.fill(sequences)
        return self._constraints.masks(rows, sequences)

    def _plan_runs(self) -> list[Chunk]:
        """What grammars force, as far as there are pages for it."""
        chunks: list[Chunk] = []
        budget = self._prefill_budget
        for sequence in self._running.values():
            num_tokens = min(sequence.num_uncomputed, sequence.room, budget)
            if num_tokens > 0:
                chunks.append(Chunk(sequence, sequence.prefill(num_tokens)))
                budget -= num_tokens
        return chunks

    def _plan_prefill(self, chunks: list[Chunk]) -> list[tuple[int, int]]:
        """Adds the next chunks under the budget, in order of admission; the page copies that must come first."""
        copies: list[tuple[int, int]] = []
        if not self._prefilling:
            return copies
        others = len(self._decoding) + sum(len(chunk.step.token_ids) for chunk in chunks)
        size = self._mixed_budget if others else self._prefill_budget
        budget = max(size - others, size // PREFILL_SHARE, 1)
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
        return copies

    def _attach_grammars(self) -> None:
        """Gives those that wait for a grammar what has come. One that fails computes its prompt all the same, as others
        may have been admitted for whom it does; then it ends."""
        for sequence, grammar in self._constraints.arrived():
            try:
                if isinstance(grammar, RequestError):
                    raise grammar
                run = self._constraints.attach(sequence, grammar)
            except RequestError as error:
                sequence.guide, sequence.error = None, error
                continue
            self._append(sequence, run)
            if self._waiting.pop(sequence.id, None) is not None:
                if not run:
                    sequence.computed -= 1  # its logits are needed now, and were not kept
                self._running[sequence.id] = sequence
        failed = [sequence for sequence in self._waiting.values() if sequence.error is not None]
        if failed:
            self._take_all()  # that the prompt is computed is to be told first
        for sequence in failed:
            assert sequence.error is not None
            self._fail(sequence, sequence.error)

    def _go_on(self, known: list[tuple[Sequence, int]], guessed: dict[int, Guessed]) -> None:
        """What the newest tokens of constrained sequences lead to. guessed: what the device found behind them, by
        sequence id."""
        sampled = []
        for sequence, token in known:
            guide = sequence.guide
            assert guide is not None
            if guide.imposed is None:
                sampled.append((sequence, token))
            else:
                assert token == guide.imposed
                guide.note_imposed()
        for sequence, run in self._constraints.go_on(sampled):
            guess = guessed.pop(sequence.id, None)
            if isinstance(run, RequestError):
                self._fail(sequence, run)
            elif guess is not None and guess.run == run:
                self._note_guessed(sequence, guess)
            else:
                if guess is not None:
                    self._take_back(sequence)
                self._begin_run(sequence, run, is_under_way=guess is None and sequence.id in self._unsampled)
        if guessed:
            for sequence, _ in sampled:
                if sequence.id in guessed:
                    assert sequence.guide is not None
                    self._guesses.learn(sequence.guide.matcher.automaton, sequence.guide.matcher.state, ())
                    self._take_back(sequence)
                    self._running[sequence.id] = sequence

    def _note_guessed(self, sequence: Sequence, guess: Guessed) -> None:
        """The run that the step under way computes is the right one."""
        flight = self._unsampled_step
        assert flight is not None
        first = flight.decode.force(guess.row, len(guess.run))
        flight.runs.append(_Run(sequence, sequence.serial, first, guess.run))
        self._executor.append(sequence, guess.run)
        metrics.FORCED_TOKENS.inc(len(guess.run))
        metrics.GUESSED_RIGHT.inc()
        if sequence.ends is not None:
            del self._decoding[sequence.id]
            self._dissolve()
            self._ending[sequence.id] = sequence

    def _take_back(self, sequence: Sequence) -> None:
        """The step under way computes a run that is none behind the sequence's newest token: what it brings counts for
        nothing, and that token is computed anew."""
        metrics.GUESSED_WRONG.inc()
        del self._decoding[sequence.id]
        self._dissolve()
        sequence.serial += 1
        sequence.computed -= 1
        sequence.num_sampled -= 1

    def _begin_run(self, sequence: Sequence, run: "array[int]", *, is_under_way: bool) -> None:
        """Ends a sequence after which nothing may follow, or sees to it that its run is computed. is_under_way: the
        next token is being sampled already, and can be none but the run's first."""
        if not run:
            assert sequence.ends is not None
            self._remove(sequence)
            self._end(sequence, sequence.ended(sequence.ends))
            return
        if is_under_way:
            assert sequence.guide is not None
            sequence.guide.impose(run[0])
            run = run[1:]
        if self._ending.get(sequence.id) is sequence:
            return  # the imposed token is its last
        if self._decoding.pop(sequence.id, None) is not None:
            self._dissolve()
        self._stalled.pop(sequence.id, None)
        self._append(sequence, run)
        self._running[sequence.id] = sequence

    def _append(self, sequence: Sequence, run: "array[int]") -> None:
        if run:
            sequence.num_sampled += len(run)
            self._executor.append(sequence, run)
            metrics.FORCED_TOKENS.inc(len(run))

    def _take_all(self) -> None:
        while self._flights:
            self._take(self._flights.popleft())

    def _take(self, flight: _Flight) -> None:
        """Looks at the tokens of a step."""
        tokens = flight.launch.tokens()
        num_decode = len(flight.decode)
        self._tell_guessed(flight)
        over = flight.decode.take(tokens[:num_decode], self._report)
        known = [(one, int(tokens[row])) for row, one in flight.decode.constrained if flight.decode.has(row)]
        sampled = iter(tokens[num_decode:].tolist())
        for chunk, serial in flight.chunks:
            token = next(sampled) if chunk.step.wants_logits else None
            sequence = chunk.sequence
            if sequence.serial != serial:
                continue
            if chunk.step.start < sequence.num_admitted:
                self._report.computed[sequence.id] = min(chunk.step.end, sequence.num_admitted)
            self._tell_run(sequence, chunk.step.end)
            if token is not None:
                if self._is_last(sequence, token):
                    over.append((sequence, token))
                if sequence.guide is not None:
                    known.append((sequence, token))
            elif sequence.ends is not None and chunk.step.end == len(sequence.token_ids):
                self._remove(sequence)
                self._end(sequence, sequence.ended(sequence.ends))
        for sequence, token in over:
            self._end_with(sequence, token)
        if known:
            gone = {sequence.id for sequence, _ in over}
            left = [(sequence, token) for sequence, token in known if sequence.id not in gone]
            self._go_on(left, self._found_behind(flight, tokens))

    def _found_behind(self, flight: _Flight, tokens: I32) -> dict[int, Guessed]:
        """What the device found behind these newest tokens, in the step that is not sampled yet."""
        unsampled = self._unsampled_step
        if unsampled is None or unsampled.guesses is None:
            return {}
        num_decode = len(flight.decode)
        self._newest[flight.decode.seats] = tokens[:num_decode]
        seats = [chunk.sequence.seat for chunk, _ in flight.chunks if chunk.step.wants_logits]
        self._newest[seats] = tokens[num_decode:]
        return self._guesses.found(unsampled.decode, unsampled.guesses, self._newest, unsampled.launch.room)

    def _tell_guessed(self, flight: _Flight) -> None:
        """Tells of the runs that the step has computed ahead of its tokens."""
        for run in flight.runs:
            sequence = run.sequence
            if sequence.serial != run.serial:
                continue
            self._report.add_forced(sequence.shard, sequence.id, run.first, run.tokens)
            sequence.num_outputs += len(run.tokens)
            if sequence.ends is not None:
                self._remove(sequence)
                self._end(sequence, sequence.ended(sequence.ends))

    def _tell_run(self, sequence: Sequence, end: int) -> None:
        """Tells of the forced tokens before `end`, whose keys and values are there now."""
        first = sequence.num_prompt + sequence.num_outputs
        if end > first:
            self._note_output(sequence)
            self._report.add_forced(sequence.shard, sequence.id, sequence.num_outputs, sequence.token_ids[first:end])
            sequence.num_outputs += end - first

    def _is_last(self, sequence: Sequence, token: int) -> bool:
        """Tells of the token that follows a sequence's chunk, and whether that is its last."""
        if token == NO_TOKEN:
            return True
        self._note_output(sequence)
        self._report.add_token(sequence.shard, sequence.id, sequence.num_outputs, token)
        sequence.num_outputs += 1
        return token in sequence.stop_token_ids or sequence.num_outputs >= sequence.max_tokens

    def _note_output(self, sequence: Sequence) -> None:
        """Output of the sequence is about to be told."""
        if sequence.first_token_at is None:
            sequence.first_token_at = self._clock()
            if sequence.num_outputs == 0:
                self._report.add_cached(sequence.shard, sequence.id, sequence.cached_prompt)

    def _fail(self, sequence: Sequence, error: RequestError) -> None:
        log.error("sequence %d: %s", sequence.id, error)
        self._remove(sequence)
        self._end(sequence, sequence.ended(FinishReason.ERROR, error=error))

    def _end_with(self, sequence: Sequence, token: int) -> None:
        """Ends a sequence for its newest token."""
        if token == NO_TOKEN:
            if sequence.guide is not None and sequence.guide.is_stuck():
                self._fail(sequence, InternalError("no token of the model can follow where the grammar stands"))
            else:
                self._fail(sequence, InternalError("the model computed no valid probabilities for this request"))
            return
        self._remove(sequence)
        if token in sequence.stop_token_ids:
            self._end(sequence, sequence.ended(FinishReason.STOP, stop_token_id=token))
        else:
            self._end(sequence, sequence.ended(sequence.ends or FinishReason.LENGTH))

    # -------------------------------------------------------------------------------------- news

    def take_report(self) -> Report | None:
        """What happened since the last report; None if nothing did. Begins a new one."""
        if not self._has_news:
            return None
        report = self._report
        report.applied = self._applied
        report.stalled = self._stalled_ids()
        if self._is_asked:
            report.holdings = self._holdings()
            self._is_asked = False
        self._has_news = False
        self._report = Report(self._epoch, self._applied)
        return report

    def _holdings(self) -> list[Held]:
        """Every sequence; those whose prompt is computed with their pages."""
        self._dissolve()  # brings their counters up to date
        held = [
            Held(
                sequence_id=sequence.id,
                num_outputs=sequence.num_outputs,
                page_table=pack_i32(sequence.page_table),
                attempt=sequence.attempt,
                cached_prompt=sequence.cached_prompt,
            )
            for place in (self._decoding, self._stalled, self._running, self._waiting, self._ending)
            for sequence in place.values()
        ]
        return held + [Held(sequence_id=sequence_id) for sequence_id in self._prefilling]

    def _stalled_ids(self) -> list[int]:
        stalled = list(self._stalled)
        head = next(iter(self._prefilling.values()), None)
        if head is not None and head.room <= 0:
            stalled.append(head.id)
        return stalled + [sequence.id for sequence in self._running.values() if sequence.room <= 0]

    def _end(self, sequence: Sequence, ended: Ended) -> None:
        self._has_news = True
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
        return len(self._prefilling) + len(self._waiting)

    @property
    def num_decoding(self) -> int:
        return len(self._decoding) + len(self._running) + len(self._ending)

    @property
    def num_stalled(self) -> int:
        return len(self._stalled)


def _constrained(decode: DecodeSet, chunks: list[Chunk]) -> list[tuple[int, Sequence, int]]:
    """(row among the step's logits, sequence, its serial) of those that sample under a mask."""
    sampled = [chunk.sequence for chunk in chunks if chunk.step.wants_logits]
    rows = decode.constrained + [
        (row, sequence) for row, sequence in enumerate(sampled, len(decode)) if sequence.guide is not None
    ]
    return [(row, sequence, sequence.serial) for row, sequence in rows]


def _writes(chunks: list[Chunk], page: int, page_size: int) -> bool:
    """Whether one of the chunks writes to the page."""
    parts = [chunk.step for chunk in chunks]
    return any(page in part.page_table[part.start // page_size : (part.end - 1) // page_size + 1] for part in parts)
