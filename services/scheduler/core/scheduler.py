"""The scheduler as a fold: `apply(events, now) -> commands`. No I/O, no clock, no randomness.

The same events at the same times give the same commands, so it can be replayed from a recorded stream and driven by
a simulator. It owns every worker's page bookkeeping and prefix index; a worker's report is the only truth about
what is computed.
"""

import heapq
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

from services.scheduler.core.effects import (
    Acknowledge,
    Arrived,
    Command,
    Deaf,
    ForgetWorker,
    Quarantine,
    Recovered,
    SendOutput,
    SendPlan,
    Waited,
)
from services.scheduler.core.radix_index import TOKEN
from services.scheduler.core.recovery import ASK_AGAIN_S, Recovery, Relearning
from services.scheduler.core.sequence import SUSPECT_CRASHES, Phase, Request, Sequence, sequences_of
from services.scheduler.core.waiting_queue import FirstComeFirstServed, LongestPrefixMatch, Policy
from services.scheduler.core.worker_state import Tuning, WorkerState
from shared.errors import ErrorBody
from shared.messages import Abort, Died, Ended, FinishReason, Goodbye, Hello, Holdings, Output, Plan, Progress
from shared.packing import unpack_i32, unpack_i64

log = logging.getLogger(__name__)

SILENT_S = 2.5  # a worker that has not been heard of for so long gets nothing new while another can take it
TELL = 0  # the number of a plan that asks the worker what it holds
START_OVER = 2**31 - 1  # one that no worker expects: it answers with a new epoch

Event = Arrived | Abort | Hello | Progress | Holdings | Goodbye | Died | Recovered | Deaf


def make_policy(name: str, aging: float) -> Policy:
    """`lpm` or `fcfs`; aging in tokens per second. Raises ValueError for another name."""
    match name:
        case "lpm":
            return LongestPrefixMatch(aging)
        case "fcfs":
            return FirstComeFirstServed()
    raise ValueError(f"no scheduling policy {name!r}; there are lpm and fcfs")


class Scheduler:
    """All requests in flight and all workers."""

    REMEMBER_S = 600.0
    REMEMBER_MOST = 200_000
    REMEMBER_SILENT = 64

    def __init__(
        self,
        policy: Callable[[], Policy],
        tuning: Tuning | None = None,
        *,
        worker_lapse_s: float = 6.0,
        no_worker_patience_s: float = 60.0,
        term: int = 0,
    ) -> None:
        """term: greater than that of any scheduler before. worker_lapse_s: a worker silent for so long is lost.
        no_worker_patience_s: how long requests wait for a first worker before they end with 503."""
        self.workers: dict[str, WorkerState] = {}
        self.sequences: dict[int, Sequence] = {}
        self.num_ended = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self._policy = policy
        self._tuning = tuning or Tuning()
        self._worker_lapse_s = worker_lapse_s
        self._no_worker_patience_s = no_worker_patience_s
        self._homeless: dict[int, Sequence] = {}  # waiting for any worker
        self._gone: OrderedDict[int, float] = OrderedDict()  # ended, or aborted before they came
        self._silent: OrderedDict[str, list[Sequence]] = OrderedDict()  # what ran on workers that were given up
        self._deadlines: list[tuple[float, int]] = []
        self._recovery = Recovery()
        self.term = term
        self._arrivals = 0
        self._commands: list[Command] = []
        self._ended: dict[int, list[Ended]] = {}

    def apply(self, events: Iterable[Event], now: float) -> list[Command]:
        """Takes events in order, decides what follows, returns it. `now` never goes back."""
        for event in events:
            match event:
                case Arrived():
                    self._arrived(event, now)
                case Abort():
                    for sequence_id in event.sequence_ids:
                        self._abort(sequence_id, now)
                case Progress():
                    self._progress(event, now)
                case Hello():
                    self._hello(event, now)
                case Recovered():
                    self._recovered(event, now)
                case Holdings():
                    self._holdings(event, now)
                case Goodbye() | Died():
                    self._gone_worker(event, now)
                case Deaf():
                    for worker in self.workers.values():
                        worker.last_seen = now
        self._expire(now)
        self._decide(now)
        for worker in self.workers.values():
            plan = worker.take_plan()
            if plan is not None:
                self._commands.append(SendPlan(worker.name, plan))
        for shard, ended in self._ended.items():
            self._commands.append(SendOutput(shard, Output(ended=ended)))
        self._ended = {}
        commands, self._commands = self._commands, []
        return commands

    # ------------------------------------------------------------------------------------- requests

    def _arrived(self, event: Arrived, now: float) -> None:
        message = event.message
        if any(sequence_id in self.sequences for sequence_id in message.sequence_ids):
            self._adopt_duplicate(event)
            return
        sequences = sequences_of(message, event.entry_id, self._arrivals, event.traceparent, event.deadline)
        self._arrivals += len(sequences)
        for sequence in sequences:
            self.sequences[sequence.sequence_id] = sequence
            if sequence.sequence_id in self._gone:
                self._end(sequence, FinishReason.ABORT, now)
                continue
            if event.deadline is not None:
                heapq.heappush(self._deadlines, (event.deadline, sequence.sequence_id))
            if event.is_replayed:
                self._recovery.put(sequence, now)
            else:
                self._place(sequence, now)

    def _adopt_duplicate(self, event: Arrived) -> None:
        """A request that came twice, because its tokenizer or the broker died after it was sent: the older entry, which
        the broker may have lost, is acknowledged now, the newer when the request ends."""
        known = next(self.sequences[i] for i in event.message.sequence_ids if i in self.sequences)
        if known.request.entry_id != event.entry_id:
            self._commands.append(Acknowledge(known.request.entry_id))
            known.request.entry_id = event.entry_id

    def _abort(self, sequence_id: int, now: float) -> None:
        sequence = self.sequences.get(sequence_id)
        if sequence is None:
            self._remember(sequence_id, now)
        else:
            self._end(sequence, FinishReason.ABORT, now)

    def _place(self, sequence: Sequence, now: float) -> None:
        """Lets the sequence wait at the worker that is to be through with its prefill first."""
        if not self.workers:
            sequence.phase = Phase.WAITING
            sequence.waiting_since = now
            self._homeless[sequence.sequence_id] = sequence
            return
        able = [worker for worker in self.workers.values() if sequence.final_tokens <= worker.max_tokens]
        if not able:
            most = max(worker.max_tokens for worker in self.workers.values())
            message = (
                f"prompt and output can be at most {most} tokens together; the prompt has {sequence.num_prompt} "
                f"and max_tokens is {sequence.request.max_tokens}"
            )
            self._fail(sequence, 400, message, "invalid_request_error", "context_length_exceeded", now)
            return
        able = [worker for worker in able if now - worker.last_seen < SILENT_S] or able
        if len(able) == 1:
            able[0].enqueue(sequence, now)
            return

        def tokens_until_done(worker: WorkerState) -> int:
            ahead = worker.pending_prefill + worker.waiting.num_tokens + len(worker.running)
            return ahead + sequence.num_tokens - worker.num_matched(sequence)

        min(able, key=tokens_until_done).enqueue(sequence, now)

    def _fail(self, sequence: Sequence, status: int, message: str, type_: str, code: str, now: float) -> None:
        error = ErrorBody(
            status=status, message=message, type=type_, code=code, retry_after_s=5.0 if status == 503 else None
        )
        self._end(sequence, FinishReason.ERROR, now, error)

    def _end(self, sequence: Sequence, reason: FinishReason, now: float, error: ErrorBody | None = None) -> None:
        """Ends a sequence by our decision, wherever it is."""
        self._ended.setdefault(sequence.request.shard, []).append(
            Ended(
                sequence_id=sequence.sequence_id,
                reason=reason,
                num_tokens=sequence.num_output,
                cached_tokens=sequence.cached_prompt,
                error=error,
            )
        )
        worker = self._worker_of(sequence)
        phase, sequence.phase = sequence.phase, Phase.ENDED
        if worker is None:
            self._homeless.pop(sequence.sequence_id, None)
            self._recovery.forget(sequence)
        elif phase is Phase.WAITING:
            if sequence in worker.waiting:
                worker.dequeue(sequence)
        elif phase is Phase.RETRACTING:
            del worker.retracting[sequence.sequence_id]
        elif worker.awaited_until(sequence) is not None:
            worker.linger(sequence)
        else:
            worker.drop(sequence, now)
        self._forget(sequence, now)

    def _forget(self, sequence: Sequence, now: float) -> None:
        """Takes an ended sequence out of the books (a lingering one stays its worker's)."""
        del self.sequences[sequence.sequence_id]
        self._remember(sequence.sequence_id, now)
        self.num_ended += 1
        sequence.request.num_open -= 1
        if sequence.request.num_open == 0:
            entry_id, poison = sequence.request.entry_id, sequence.request.poison
            self._commands.append(Quarantine(entry_id, poison) if poison else Acknowledge(entry_id))

    def _remember(self, sequence_id: int, now: float) -> None:
        self._gone[sequence_id] = now
        self._gone.move_to_end(sequence_id)
        while len(self._gone) > self.REMEMBER_MOST or now - next(iter(self._gone.values())) > self.REMEMBER_S:
            self._gone.popitem(last=False)

    def _worker_of(self, sequence: Sequence) -> WorkerState | None:
        return self.workers.get(sequence.worker) if sequence.worker is not None else None

    # -------------------------------------------------------------------------------------- workers

    def _hello(self, hello: Hello, now: float) -> None:
        known = self.workers.get(hello.worker)
        if known is not None and known.epoch >= hello.epoch:
            return
        self._recovery.relearning.pop(hello.worker, None)
        self._acquit(hello.worker)
        _, waiting = self._lose(known, is_crash=True) if known is not None else ([], [])
        self._join(WorkerState(hello, self._policy(), self._tuning, now, term=self.term), now)
        self._again(waiting, now)

    def _join(self, worker: WorkerState, now: float) -> None:
        """From now on the worker has its share of the work."""
        log.info("worker %s: epoch %d, %d pages", worker.name, worker.epoch, worker.pool.num_pages)
        self.workers[worker.name] = worker
        homeless, self._homeless = self._homeless, {}
        for sequence in homeless.values():
            self._place(sequence, now)

    def _gone_worker(self, event: Goodbye | Died, now: float) -> None:
        self._recovery.relearning.pop(event.worker, None)
        if isinstance(event, Died):
            self._silent.pop(event.worker, None)
        else:
            self._acquit(event.worker)
        worker = self.workers.get(event.worker)
        if worker is not None and (isinstance(event, Died) or worker.epoch == event.epoch):
            _, waiting = self._lose(worker, is_crash=isinstance(event, Died))
            self._commands.append(ForgetWorker(worker.name))
            self._again(waiting, now)

    def _give_up(self, worker: WorkerState, now: float) -> None:
        """A worker that is silent. Should it come back it has to start over: nothing more of this epoch counts. It is
        as good as dead until it does: it may hang over what it ran."""
        log.warning("worker %s: silent for %.0f s, given up", worker.name, now - worker.last_seen)
        ran, waiting = self._lose(worker, is_crash=True)
        self._silent[worker.name] = ran
        if len(self._silent) > self.REMEMBER_SILENT:
            self._silent.popitem(last=False)
        self._commands.append(ForgetWorker(worker.name))
        self._commands.append(
            SendPlan(worker.name, Plan(epoch=worker.epoch, number=START_OVER, commands=[], term=self.term))
        )
        self._again(waiting, now)

    def _acquit(self, name: str) -> None:
        """A worker that was given up speaks: what ran there has not killed it."""
        for sequence in self._silent.pop(name, []):
            sequence.crashes -= 1

    def _lose(self, worker: WorkerState, *, is_crash: bool) -> tuple[list[Sequence], list[Sequence]]:
        """Forgets a worker and all it held; the sequences that ran there and those that waited. What the former have
        told is read first, before they go on elsewhere."""
        ran, waiting = self._take_apart(worker)
        for sequence in ran:
            sequence.attempt += 1
            sequence.crashes += is_crash
            sequence.is_poison = is_crash and len(ran) == 1 and sequence.crashes >= SUSPECT_CRASHES
        if ran:
            self._commands.append(self._recovery.read(worker.name, worker.epoch, ran, is_fenced=True))
        return ran, waiting

    def _take_apart(self, worker: WorkerState) -> tuple[list[Sequence], list[Sequence]]:
        """Takes a worker out of the books; its sequences that ran and those that waited, as before admission."""
        del self.workers[worker.name]
        ran = [s for s in [*worker.running.values(), *worker.retracting.values()] if s.phase is not Phase.LINGERING]
        waiting = list(worker.waiting)
        for sequence in [*ran, *waiting]:
            sequence.reset()
        return ran, waiting

    def _again(self, lost: Many[Sequence], now: float) -> None:
        """Finds another place for sequences whose worker is gone."""
        for sequence in lost:
            if sequence.num_output >= sequence.request.max_tokens:
                self._end(sequence, FinishReason.LENGTH, now)
            elif sequence.is_poison:
                self._condemn(sequence, now)
            else:
                self._place(sequence, now)

    def _condemn(self, sequence: Sequence, now: float) -> None:
        """Ends a request that nobody else can have killed the worker with."""
        request = sequence.request
        message = f"request {request.request_id} was running alone when its worker died, the {sequence.crashes}. time"
        log.error("%s: it is not tried again", message)
        request.poison = message
        self._fail(sequence, 500, message, "server_error", "worker_lost", now)

    # ------------------------------------------------------------------------------------- recovery

    def _relearn(self, worker: WorkerState, now: float) -> None:
        """A report of the worker was lost: it is to say what it holds, and goes on meanwhile."""
        log.error("worker %s: a report after number %d was lost", worker.name, worker.heard)
        ran, waiting = self._take_apart(worker)
        for sequence in ran:
            self._recovery.put(sequence, now)
        self._again(waiting, now)

    def _stranger(self, progress: Progress, now: float) -> None:
        """A worker that we know nothing of, or not in this epoch: we are new, or something was lost. It is asked what
        it holds; what it says after the answer is kept until its sequences are known."""
        known = self._recovery.relearning.get(progress.worker)
        if known is not None and progress.epoch < known.epoch:
            return
        if known is not None and known.epoch == progress.epoch:
            if known.holdings is not None:
                known.reports.append(progress)
                return
            if now - known.asked_at < ASK_AGAIN_S:
                return
        self._recovery.relearning[progress.worker] = Relearning(progress.epoch, now)
        question = Plan(epoch=progress.epoch, number=TELL, commands=[], term=self.term)
        self._commands.append(SendPlan(progress.worker, question))

    def _holdings(self, holdings: Holdings, now: float) -> None:
        relearning = self._recovery.relearning.get(holdings.hello.worker)
        if relearning is not None and relearning.epoch == holdings.hello.epoch and relearning.holdings is None:
            relearning.holdings = holdings
            self._commands.append(self._recovery.claim(holdings))

    def _recovered(self, recovered: Recovered, now: float) -> None:
        """Sequences go on with what they have told, where they are or elsewhere."""
        going_on = []
        for sequence in self._recovery.answered(recovered.worker, recovered.epoch):
            sequence.learn(recovered.outputs.get(sequence.sequence_id, b""))
            if sequence.sequence_id in recovered.ended or sequence.sequence_id not in recovered.opened:
                sequence.phase = Phase.ENDED  # its client has been told, or is not there any more
                self._forget(sequence, now)
            else:
                going_on.append(sequence)
        relearning = self._recovery.relearning.get(recovered.worker)
        if relearning is not None and relearning.epoch == recovered.epoch and relearning.holdings is not None:
            del self._recovery.relearning[recovered.worker]
            going_on = self._adopt(relearning, relearning.holdings, going_on, now)
        self._again(going_on, now)

    def _adopt(
        self, relearning: Relearning, holdings: Holdings, sequences: Many[Sequence], now: float
    ) -> list[Sequence]:
        """Takes a worker into the books as it is; returns the sequences that it cannot go on with."""
        known = self.workers.get(holdings.hello.worker)
        _, waiting = self._lose(known, is_crash=True) if known is not None else ([], [])
        worker = WorkerState(
            holdings.hello,
            self._policy(),
            self._tuning,
            now,
            term=self.term,
            applied=holdings.applied,
            heard=holdings.number,
        )
        wanted = {sequence.sequence_id: sequence for sequence in sequences}
        able, refused = [], dict(wanted)
        for held in holdings.sequences:
            sequence = wanted.get(held.sequence_id)
            if sequence is None or not held.page_table or sequence.num_output < held.num_outputs:
                continue
            del refused[held.sequence_id]
            sequence.take_back(held.num_outputs)
            sequence.attempt, sequence.cached_prompt = held.attempt, held.cached_prompt
            able.append((sequence, list(unpack_i32(held.page_table))))
        refused |= {sequence.sequence_id: sequence for sequence in worker.adopt(able, now)}
        worker.disown_all([h.sequence_id for h in holdings.sequences if h.sequence_id not in worker.running])
        for sequence in refused.values():
            sequence.attempt += 1
        log.info("worker %s: goes on with %d of its sequences", worker.name, len(worker.running))
        self._join(worker, now)
        for report in relearning.reports:
            self._progress(report, now)
        return [*waiting, *refused.values()]

    # -------------------------------------------------------------------------------------- reports

    def _progress(self, progress: Progress, now: float) -> None:
        worker = self.workers.get(progress.worker)
        if worker is None or progress.epoch > worker.epoch:
            self._stranger(progress, now)
            return
        if progress.epoch < worker.epoch:
            return
        worker.last_seen = now
        if progress.number <= worker.heard:
            return  # came twice: a connection broke while it was written
        if progress.number > worker.heard + 1:
            self._relearn(worker, now)
            self._stranger(progress, now)
            return
        worker.heard = progress.number
        for sequence_id, computed in zip(unpack_i64(progress.computed_ids), unpack_i32(progress.computed), strict=True):
            sequence = worker.running.get(sequence_id)
            if sequence is not None:
                worker.on_computed(sequence, computed)
        token_ids = progress.token_ids
        sequence_ids, indices = unpack_i64(progress.sequence_ids), unpack_i32(progress.indices)
        for at in worker.take_quiet(sequence_ids, indices, token_ids):
            self._token(worker, sequence_ids[at], indices[at], token_ids[at * TOKEN : at * TOKEN + TOKEN], now)
        for ended in progress.ended:
            self._ended_by_worker(worker, ended, now)
        for sequence_id in unpack_i64(progress.retracted):
            sequence = worker.retracting.pop(sequence_id, None)
            if sequence is not None:
                sequence.attempt += 1
                self._again([sequence], now)
        lingering = worker.num_lingering and [s for s in worker.running.values() if s.phase is Phase.LINGERING]
        for sequence in lingering or ():
            if worker.awaited_until(sequence) is None:
                worker.drop(sequence, now)

    def _token(self, worker: WorkerState, sequence_id: int, index: int, token: bytes, now: float) -> None:
        sequence = worker.running.get(sequence_id)
        if sequence is None:
            sequence = worker.retracting.get(sequence_id)
            if sequence is not None and index == sequence.num_output:
                sequence.tokens += token
            return
        if sequence.phase is not Phase.RUNNING or index < sequence.num_output:
            if sequence.phase is Phase.LINGERING:
                worker.on_computed(sequence, sequence.num_tokens)
            return
        assert index == sequence.num_output, f"token {index} of {sequence_id}, expected {sequence.num_output}"
        worker.on_token(sequence, token, now)

    def _ended_by_worker(self, worker: WorkerState, ended: Ended, now: float) -> None:
        sequence = worker.running.get(ended.sequence_id)
        if sequence is not None and ended.reason is FinishReason.ERROR:
            worker.fail(sequence, now)
        elif sequence is not None:
            worker.finish(sequence, now)
        else:
            sequence = worker.retracting.pop(ended.sequence_id, None)
        if sequence is not None and sequence.phase is not Phase.LINGERING:
            sequence.phase = Phase.ENDED
            self._forget(sequence, now)

    # ---------------------------------------------------------------------------------------- time

    def _expire(self, now: float) -> None:
        for worker in list(self.workers.values()):
            if now - worker.last_seen > self._worker_lapse_s:
                self._give_up(worker, now)
        if (overdue := self._recovery.sweep(now)) is not None:
            self._commands.append(overdue)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, sequence_id = heapq.heappop(self._deadlines)
            sequence = self.sequences.get(sequence_id)
            if sequence is not None:
                self._fail(sequence, 504, "the request's deadline has passed", "timeout_error", "timeout", now)
        for sequence in list(self._homeless.values()):
            if now - sequence.waiting_since > self._no_worker_patience_s:
                self._fail(sequence, 503, "no worker is running", "server_error", "unavailable", now)

    # ------------------------------------------------------------------------------------ decisions

    def _decide(self, now: float) -> None:
        for worker in self.workers.values():
            worker.feed_hungry(now)
            self._admit(worker, now)
        if len(self.workers) > 1:
            self._steal(now)

    def _admit(self, worker: WorkerState, now: float) -> None:
        worker.rematch()
        while worker.has_room and not worker.hungry:
            sequence = worker.waiting.first()
            if sequence is None or not worker.is_free_for(sequence) or not worker.admit(sequence, now):
                return
            if sequence.attempt == 0:
                self.num_prompt_tokens += sequence.num_prompt
                self.num_cached_tokens += sequence.cached_prompt
            if sequence.request.traceparent is not None:
                self._commands.append(self._waited(worker, sequence))
            worker.rematch()

    def _waited(self, worker: WorkerState, sequence: Sequence) -> Waited:
        request: Request = sequence.request
        assert request.traceparent is not None
        return Waited(
            traceparent=request.traceparent,
            request_sequence_id=request.first_sequence_id,
            sequence_id=sequence.sequence_id,
            choice=sequence.choice,
            attempt=sequence.attempt,
            since=sequence.waiting_since,
            worker=worker.name,
            num_tokens=sequence.num_tokens,
            cached_tokens=sequence.num_matched,
            num_waiting=len(worker.waiting),
        )

    def _steal(self, now: float) -> None:
        """Gives an idle worker one sequence that waits elsewhere, the one that loses the least cached tokens."""
        for idle in self.workers.values():
            if idle.running or idle.waiting or now - idle.last_seen >= SILENT_S:
                continue
            busy = max(self.workers.values(), key=lambda worker: len(worker.waiting))
            able = [s for s in busy.waiting if s.final_tokens <= idle.max_tokens]
            if not able:
                continue
            sequence = min(able, key=lambda s: (s.num_matched, -s.number))
            busy.dequeue(sequence)
            since = sequence.waiting_since
            idle.enqueue(sequence, now)
            sequence.waiting_since = since
            self._admit(idle, now)

    # --------------------------------------------------------------------------------------- checks

    def check_integrity(self) -> None:
        """Asserts the ledger of every worker and that every sequence is in one place; slow, for tests."""
        for worker in self.workers.values():
            worker.check_integrity()
        for sequence in self.sequences.values():
            places = [sequence.sequence_id in self._homeless, sequence in self._recovery]
            for worker in self.workers.values():
                places.append(sequence in worker.waiting)
                places.append(worker.running.get(sequence.sequence_id) is sequence)
                places.append(worker.retracting.get(sequence.sequence_id) is sequence)
            assert sum(places) == 1, f"{sequence.sequence_id} is in {sum(places)} places"
