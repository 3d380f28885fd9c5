"""One worker as the scheduler sees it: its pages, its prefix index, who runs and who waits there."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

from services.scheduler.core.page_pool import PagePool
from services.scheduler.core.radix_index import TOKEN, Match, Node, Parked, RadixIndex
from services.scheduler.core.sequence import Phase, Sequence
from services.scheduler.core.waiting_queue import Policy, WaitingQueue
from shared.messages import Admit, Drop, Grant, Hello, Plan, Retract
from shared.packing import pack_i32


@dataclass(frozen=True, slots=True)
class Tuning:
    """Numbers that trade memory and latency for throughput.

    headroom: tokens of decode that a lease has room for when given; low_water: left when it is renewed;
    lookahead: admitted prompt tokens a worker may have before it, in units of its prefill budget;
    reserve: share of the running sequences' remaining output that admission leaves room for at first."""

    headroom: int = 64
    low_water: int = 32
    lookahead: float = 2.0
    reserve: float = 0.2
    reserve_min: float = 0.05
    reserve_max: float = 1.0


class WorkerState:
    """Bookkeeping of one worker's epoch. Commands gather until `take_plan`.

    Every page is in exactly one place: free in `pool`, in a node of `index`, or private to a running sequence."""

    def __init__(
        self,
        hello: Hello,
        policy: Policy,
        tuning: Tuning,
        now: float,
        *,
        term: int = 0,
        applied: int = 0,
        heard: int = 0,
    ) -> None:
        """term: of this scheduler; applied: plans that the worker has applied, heard: reports that it has sent."""
        self.name = hello.worker
        self.epoch = hello.epoch
        self.page_size = hello.page_size
        self.max_running = hello.max_running
        self.max_tokens = min(hello.max_model_len, hello.num_pages * hello.page_size)
        self.prefill_budget = hello.prefill_budget
        self.last_seen = now
        self.heard = heard
        self.pool = PagePool(hello.num_pages)
        self.index = RadixIndex(hello.page_size, self._note_rematch)
        self.waiting = WaitingQueue(policy)
        self.running: dict[int, Sequence] = {}  # in order of admission; the lingering included
        self.retracting: dict[int, Sequence] = {}
        self.hungry: dict[int, Sequence] = {}  # running out of pages
        self.pending_prefill = 0
        self.num_lingering = 0
        self._num_suspects = 0  # of those that run
        self._outstanding = 0  # of all that run, together
        self.num_retractions = 0
        self._tuning = tuning
        self._reserve = tuning.reserve
        self._rematch: list[Sequence] = []
        self._commands: list[Admit | Grant | Drop | Retract] = []
        self._plans = applied
        self._term = term

    # -------------------------------------------------------------------------------------- waiting

    def enqueue(self, sequence: Sequence, now: float) -> None:
        """Lets the sequence wait here."""
        sequence.phase = Phase.WAITING
        sequence.waiting_since = now
        sequence.worker = self.name
        self._park(sequence)
        self.waiting.put(sequence)

    def dequeue(self, sequence: Sequence) -> None:
        """Takes a waiting sequence out."""
        self.waiting.remove(sequence)
        self.index.unpark(sequence)

    def num_matched(self, sequence: Sequence) -> int:
        """Tokens of the sequence that this worker has."""
        return self._match(sequence).num_tokens

    def _match(self, sequence: Sequence) -> Match:
        return self.index.match(bytes(sequence.tokens), sequence.num_tokens - 1, sequence.request.cache_salt)

    def _park(self, sequence: Sequence) -> None:
        match = self._match(sequence)
        sequence.num_matched = match.num_tokens
        self.index.park(sequence, match, bytes(sequence.tokens))

    def _note_rematch(self, woken: Iterable[Parked]) -> None:
        self._rematch.extend(cast("Iterable[Sequence]", woken))

    def rematch(self) -> None:
        """Gives those whose match may have changed their new place in the queue."""
        while self._rematch:
            woken, self._rematch = self._rematch, []
            woken.sort(key=lambda sequence: sequence.number)  # a set's order is no order to depend on
            for sequence in woken:
                if sequence.parked_at is None and sequence in self.waiting:
                    self._park(sequence)
                    self.waiting.put(sequence)

    # ------------------------------------------------------------------------------------ admission

    @property
    def has_room(self) -> bool:
        """Whether another sequence could start soon, pages permitting."""
        return (
            len(self.running) < self.max_running and self.pending_prefill < self._tuning.lookahead * self.prefill_budget
        )

    def is_free_for(self, sequence: Sequence) -> bool:
        """Whether the sequence may run beside those that do: a suspect runs alone."""
        return not self.running or not (sequence.is_suspect or self._num_suspects)

    def admit(self, sequence: Sequence, now: float) -> bool:
        """Starts a waiting sequence if its pages can be had, evicting cached ones; False leaves it waiting."""
        self.index.unpark(sequence)
        match = self._match(sequence)
        self.index.lock(match.node)
        if match.copy_node is not None:
            self.index.lock(match.copy_node)
        until = min(sequence.num_tokens + self._tuning.headroom, sequence.final_tokens)
        wanted = self._pages_for(until) - len(match.pages)
        if not self._can_take(wanted, reserve=bool(self.running)) and match.copy_node is not None and not self.running:
            self.index.unlock(match.copy_node)  # the page to copy is one that the sequence itself needs
            match = Match(match.node, match.pages, len(match.pages) * self.page_size)
        if not self._can_take(wanted, reserve=bool(self.running)):
            if match.copy_node is not None:
                self.index.unlock(match.copy_node)
            self.index.unlock(match.node)
            self.index.park(sequence, match, bytes(sequence.tokens))
            return False
        self.waiting.remove(sequence)
        self._start(sequence, match, self._take(wanted), now)
        return True

    def _start(self, sequence: Sequence, match: Match, own: list[int], now: float) -> None:
        sequence.phase = Phase.RUNNING
        sequence.pages = match.pages + own
        sequence.tree_pages = sequence.matched_pages = len(match.pages)
        sequence.node = match.node
        sequence.copy_node = match.copy_node
        sequence.is_shadowed = False
        sequence.num_matched = match.num_tokens
        sequence.computed = len(match.pages) * self.page_size
        if sequence.attempt == 0:
            sequence.cached_prompt = match.num_tokens
        self._enter(sequence)
        sequence.admitted_tokens = sequence.num_tokens
        sequence.prefill_left = sequence.num_tokens - match.num_tokens
        self.pending_prefill += sequence.prefill_left
        self._share(sequence, sequence.num_tokens // self.page_size, sequence, now)
        self.index.touch(sequence.node, now)
        if match.copy_node is not None:
            match.copy_node.last_use = now
        self._commands.append(
            Admit(
                sequence_id=sequence.sequence_id,
                shard=sequence.request.shard,
                token_ids=bytes(sequence.tokens),
                num_prompt=sequence.num_prompt,
                cached=match.num_tokens,
                page_table=pack_i32(sequence.pages),
                copy_from=match.copy_from,
                sampling=sequence.sampling,
                stop_token_ids=sequence.request.stop_token_ids,
                max_tokens=sequence.request.max_tokens,
                attempt=sequence.attempt,
                cached_prompt=sequence.cached_prompt,
                traceparent=sequence.request.traceparent,
                grammar=sequence.request.grammar,
            )
        )

    def _enter(self, sequence: Sequence) -> None:
        self.running[sequence.sequence_id] = sequence
        sequence.runs_alone = sequence.is_suspect
        self._num_suspects += sequence.runs_alone
        sequence.quiet_until = 0
        self._note_room(sequence)

    def _note_room(self, sequence: Sequence) -> None:
        """Its page table has another length."""
        outstanding = max(0, sequence.final_tokens - len(sequence.pages) * self.page_size)
        self._outstanding += outstanding - sequence.outstanding
        sequence.outstanding = outstanding

    def adopt(self, sequences: Iterable[tuple[Sequence, list[int]]], now: float) -> list[Sequence]:
        """Takes over sequences that run here already, each with the pages that it has; all but its newest token is
        computed. All other pages are free. Returns those that cannot be taken over."""
        held: set[int] = set()
        refused = [sequence for sequence, pages in sequences if not self._adopt(sequence, pages, held, now)]
        self.pool.keep_only_free(held)
        for sequence in self.running.values():
            self.ensure_room(sequence)
        return refused

    def _adopt(self, sequence: Sequence, pages: list[int], held: set[int], now: float) -> bool:
        sequence.computed = sequence.num_tokens - 1
        sequence.admitted_tokens = sequence.num_tokens
        whole = sequence.computed // self.page_size
        match = self.index.match(bytes(sequence.tokens), whole * self.page_size, sequence.request.cache_salt)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(match.pages, pages, strict=False)))
        if not held.isdisjoint(pages[shared:]):
            return False  # shares pages with another in a way that the tree cannot say
        held.update(pages)
        if shared < len(match.pages):  # another has pages of its own with the same content
            match = self.index.match(bytes(sequence.tokens), shared * self.page_size, sequence.request.cache_salt)
            sequence.is_shadowed = True
        self.index.lock(match.node)
        sequence.phase, sequence.worker = Phase.RUNNING, self.name
        sequence.node, sequence.pages = match.node, pages
        sequence.tree_pages = sequence.matched_pages = shared
        sequence.num_matched = shared * self.page_size
        self._enter(sequence)
        self._share(sequence, whole, None, now)
        self.index.touch(sequence.node, now)
        return True

    def disown_all(self, sequence_ids: list[int]) -> None:
        """The worker is to forget these sequences, which are in none of our books."""
        if sequence_ids:
            self._commands.append(Drop(sequence_ids=sequence_ids))

    def _share(self, sequence: Sequence, whole: int, owner: Sequence | None, now: float) -> None:
        """Puts the sequence's pages up to the `whole`-th into the tree, unless another's stand there."""
        if whole <= sequence.tree_pages or sequence.is_shadowed:
            return
        assert sequence.node is not None
        start, end = sequence.tree_pages * self.page_size, whole * self.page_size
        node = self.index.extend(
            sequence.node, sequence.slice(start, end), sequence.pages[sequence.tree_pages : whole], owner, now
        )
        if node is None:
            sequence.is_shadowed = True
        else:
            sequence.node = node
            sequence.tree_pages = whole
        self.pool.free(self.index.take_superseded())

    # ------------------------------------------------------------------------------------- progress

    def on_computed(self, sequence: Sequence, computed: int) -> None:
        """The worker has keys and values of so many of the sequence's tokens."""
        if computed <= max(sequence.computed, sequence.num_matched):
            return
        sequence.computed = computed
        left = max(0, sequence.admitted_tokens - computed)
        self.pending_prefill -= sequence.prefill_left - left
        sequence.prefill_left = left
        self._unlock_copy(sequence)
        if computed >= sequence.tree_pages * self.page_size:
            self._disown(sequence)

    def take_quiet(self, sequence_ids: "array[int]", indices: "array[int]", token_ids: bytes) -> list[int]:
        """Takes those tokens of a report that change nothing but their sequence's length, which are nearly all.
        Returns the places of the others, whose turn may come afterwards, for quiet ones touch nobody else."""
        others = []
        running = self.running
        for at, sequence_id in enumerate(sequence_ids):
            sequence = running.get(sequence_id)
            if sequence is not None:
                tokens = sequence.tokens
                count = len(tokens) // TOKEN
                if count < sequence.quiet_until and indices[at] == count - sequence.num_prompt:
                    tokens += token_ids[at * TOKEN : at * TOKEN + TOKEN]
                    sequence.computed = count
                    continue
            others.append(at)
        return others

    def on_token(self, sequence: Sequence, token: bytes, now: float) -> None:
        """The worker has sampled the sequence's next token, so it has computed all those before."""
        self.on_computed(sequence, sequence.num_tokens)
        sequence.tokens += token
        self._share(sequence, sequence.computed // self.page_size, None, now)
        self.ensure_room(sequence)
        sequence.quiet_until = self._quiet_until(sequence)

    def _quiet_until(self, sequence: Sequence) -> int:
        if sequence.sequence_id in self.hungry:
            return 0
        until = sequence.final_tokens
        if sequence.outstanding:
            until = len(sequence.pages) * self.page_size - self._tuning.low_water
        return until if sequence.is_shadowed else min(until, (sequence.tree_pages + 1) * self.page_size)

    def ensure_room(self, sequence: Sequence) -> None:
        """Renews the lease if it runs low; notes the sequence as hungry if no page is to be had."""
        room = len(sequence.pages) * self.page_size
        if room >= min(sequence.num_tokens + self._tuning.low_water, sequence.final_tokens):
            self.hungry.pop(sequence.sequence_id, None)
            return
        until = min(sequence.num_tokens + self._tuning.headroom, sequence.final_tokens)
        wanted = self._pages_for(until) - len(sequence.pages)
        count = min(wanted, self.pool.num_free + self.index.num_evictable)
        if count > 0:
            pages = self._take(count)
            sequence.pages += pages
            self._note_room(sequence)
            self._commands.append(Grant(sequence_id=sequence.sequence_id, pages=pack_i32(pages)))
        if count < wanted:
            self.hungry[sequence.sequence_id] = sequence
        else:
            self.hungry.pop(sequence.sequence_id, None)

    def feed_hungry(self, now: float) -> None:
        """Gives pages to those that run out of them; retracts the newest while one stands still."""
        for sequence in list(self.hungry.values()):
            if sequence.sequence_id in self.hungry:
                self.ensure_room(sequence)
        starving = [s for s in self.hungry.values() if len(s.pages) * self.page_size <= s.num_tokens]
        while starving:
            victim = next(
                (s for s in reversed(self.running.values()) if s.phase is Phase.RUNNING and not self.awaited_until(s)),
                None,
            )
            if victim is None or len(self.running) == 1:
                return
            self.retract(victim, now)
            for sequence in starving:
                if sequence.phase is Phase.RUNNING:
                    self.ensure_room(sequence)
            starving = [s for s in self.hungry.values() if len(s.pages) * self.page_size <= s.num_tokens]

    def retract(self, sequence: Sequence, now: float) -> None:
        """Takes a running sequence's pages; what they hold stays cached, so that coming back is cheap."""
        self.release(sequence, now)
        sequence.phase = Phase.RETRACTING
        self.retracting[sequence.sequence_id] = sequence
        self._commands.append(Retract(sequence_ids=[sequence.sequence_id]))
        self.num_retractions += 1
        self._reserve = min(self._tuning.reserve_max, self._reserve * 1.5 + 0.05)

    # --------------------------------------------------------------------------------------- ending

    def awaited_until(self, sequence: Sequence) -> int | None:
        """The position up to which other sequences wait for this one's promised pages; None if none does."""
        node = sequence.node
        while node is not None and node.owner is sequence and node.end > sequence.computed:
            if node.locks > 1 or node.children:
                return node.end
            node = node.parent
        return None

    def linger(self, sequence: Sequence) -> None:
        """The sequence has ended for its client and runs on for the pages that others were promised."""
        sequence.phase = Phase.LINGERING
        sequence.quiet_until = 0
        self.num_lingering += 1

    def drop(self, sequence: Sequence, now: float) -> None:
        """Ends a running sequence by our decision."""
        self.release(sequence, now)
        self._commands.append(Drop(sequence_ids=[sequence.sequence_id]))

    def finish(self, sequence: Sequence, now: float) -> None:
        """The worker has ended the sequence by itself."""
        self._reserve = max(self._tuning.reserve_min, self._reserve * 0.98)
        self.release(sequence, now)

    def fail(self, sequence: Sequence, now: float) -> None:
        """The worker could not run the sequence: what it computed is not to be trusted, and what it promised will
        not come, so those that wait for it start again."""
        for other in reversed(list(self.running.values())):
            if other is not sequence and _waits_for(other, sequence):
                # What it says it has computed since it computed over pages that nobody had filled.
                other.computed = min(other.computed, other.matched_pages * self.page_size)
                if other.phase is Phase.RUNNING:
                    self.retract(other, now)
                else:
                    self.drop(other, now)
        sequence.computed = min(sequence.computed, sequence.matched_pages * self.page_size)
        self.release(sequence, now)

    def release(self, sequence: Sequence, now: float) -> None:
        """Gives the sequence's pages back: to the tree what is computed, to the pool the rest."""
        assert sequence.node is not None
        self.pending_prefill -= sequence.prefill_left
        sequence.prefill_left = 0
        self._unlock_copy(sequence)
        node, own = sequence.node, sequence.pages[sequence.tree_pages :]
        in_tree = sequence.tree_pages * self.page_size
        if in_tree > sequence.computed:
            node, freed = self.index.cut(node, sequence.computed // self.page_size * self.page_size)
            self.pool.free(freed + own)
        else:
            used = self._pages_for(sequence.computed) - sequence.tree_pages
            unused = self.index.insert(node, sequence.slice(in_tree, sequence.computed), own[:used], now)
            self.pool.free(unused + own[used:])
            self.pool.free(self.index.take_superseded())
        sequence.node = node
        self._disown(sequence)
        self.index.touch(node, now)
        self.index.unlock(node)
        sequence.node = None
        sequence.pages = []
        sequence.tree_pages = sequence.computed = sequence.num_matched = 0
        sequence.quiet_until = 0
        self._outstanding -= sequence.outstanding
        sequence.outstanding = 0
        self._num_suspects -= sequence.runs_alone
        self.num_lingering -= sequence.phase is Phase.LINGERING
        del self.running[sequence.sequence_id]
        self.hungry.pop(sequence.sequence_id, None)

    def _disown(self, sequence: Sequence) -> None:
        at: Node | None = sequence.node
        while at is not None:
            if at.owner is sequence:
                at.owner = None
            at = at.parent

    def _unlock_copy(self, sequence: Sequence) -> None:
        if sequence.copy_node is not None:
            self.index.unlock(sequence.copy_node)
            sequence.copy_node = None

    # ---------------------------------------------------------------------------------------- pages

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def _can_take(self, count: int, *, reserve: bool) -> bool:
        available = self.pool.num_free + self.index.num_evictable
        if reserve:
            count += int(self._reserve * self._outstanding / self.page_size)
        return available >= count

    def _take(self, count: int) -> list[int]:
        short = count - self.pool.num_free
        if short > 0:
            self.pool.free(self.index.evict(short))
        return self.pool.allocate(count)

    # ---------------------------------------------------------------------------------------- plans

    def take_plan(self) -> Plan | None:
        """What has gathered for the worker since the last plan."""
        if not self._commands:
            return None
        self._plans += 1
        commands, self._commands = self._commands, []
        return Plan(epoch=self.epoch, number=self._plans, commands=commands, term=self._term)

    @property
    def num_private(self) -> int:
        """Pages of running sequences that are not in the tree."""
        return sum(len(sequence.pages) - sequence.tree_pages for sequence in self.running.values())

    @property
    def imbalance(self) -> int:
        """Pages that are in no place, or minus those in two: 0, or the ledger is wrong."""
        return self.pool.num_pages - self.pool.num_free - self.index.num_pages - self.num_private

    def check_integrity(self) -> None:
        """Asserts that every page is in exactly one place; slow, for tests."""
        self.index.check_integrity()
        places = self.pool.free_pages()
        for node in self.index.nodes():
            places += node.pages
        for sequence in self.running.values():
            places += sequence.pages[sequence.tree_pages :]
        assert sorted(places) == list(range(self.pool.num_pages)), "a page is lost or has two owners"
        locks = sum(1 for s in self.running.values()) + sum(1 for s in self.running.values() if s.copy_node)
        assert sum(root.locks for root in self.index.roots()) == locks
        assert self.pending_prefill >= 0
        running = self.running.values()
        assert self._outstanding == sum(max(0, s.final_tokens - len(s.pages) * self.page_size) for s in running)
        assert self._num_suspects == sum(s.runs_alone for s in running)
        assert self.num_lingering == sum(s.phase is Phase.LINGERING for s in running)
        for sequence in running:
            assert sequence.num_tokens > sequence.quiet_until or sequence.phase is Phase.RUNNING


def _waits_for(sequence: Sequence, other: Sequence) -> bool:
    """Whether the sequence's pages include some that `other` is still to compute."""
    node = sequence.node
    while node is not None:
        if node.owner is other and node.computed_end < node.end:
            return True
        node = node.parent
    return False
