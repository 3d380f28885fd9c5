"""A worker in miniature that keeps what the protocol promises and checks what the scheduler promises it.

Its "keys and values" of a position are a digest of all tokens up to there, so a page that is shared, copied, freed or
given to two sequences wrongly shows up as a wrong digest at the next read.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.messages import Admit, Drop, Ended, FinishReason, Grant, Held, Hello, Holdings, Plan, Progress, Retract
from shared.packing import pack_i32, pack_i64, unpack_i32

START_OVER = 2**31 - 1
VOCABULARY = 5


def digest(before: bytes, token: int) -> bytes:
    return hashlib.blake2b(before + token.to_bytes(4, "little"), digest_size=8).digest()


def next_token(state: bytes) -> int:
    """The model: any function of the prefix will do."""
    return state[0] % VOCABULARY


def expected_output(prompt: list[int], max_tokens: int, stop: list[int]) -> list[int]:
    """What the sequence gives when it runs alone."""
    state = b""
    for token in prompt:
        state = digest(state, token)
    output: list[int] = []
    while len(output) < max_tokens:
        token = next_token(state)
        output.append(token)
        if token in stop:
            break
        state = digest(state, token)
    return output


@dataclass
class Running:
    admit: Admit
    tokens: list[int]
    pages: list[int]
    computed: int
    has_copied: bool = False
    reported: int = 0


@dataclass
class FakeWorker:
    name: str = "w"
    num_pages: int = 16
    page_size: int = 4
    max_model_len: int = 4000
    max_running: int = 8
    budget: int = 8
    epoch: int = 1
    applied: int = 0
    number: int = 0
    term: int = 0
    is_asked: bool = False
    answer: Holdings | None = None
    inbox: list[Plan] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)
    kv: dict[tuple[int, int], bytes] = field(default_factory=dict)
    outputs: dict[int, dict[int, int]] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    num_computed: int = 0
    num_retracted: int = 0

    def hello(self) -> Hello:
        return Hello(
            worker=self.name,
            epoch=self.epoch,
            model="m",
            num_pages=self.num_pages,
            page_size=self.page_size,
            max_model_len=self.max_model_len,
            max_running=self.max_running,
            prefill_budget=self.budget,
        )

    def restart(self) -> Hello:
        self.epoch += 1
        self.applied = self.number = 0
        self.is_asked, self.answer = False, None
        self.running.clear()
        self.kv.clear()
        return self.hello()

    def step(self, plans: int = 1000) -> Progress | Hello:
        """Applies some of the plans that wait, computes one step, reports it; or says hello after a start over."""
        retracted: list[int] = []
        for plan in self.inbox[:plans]:
            if plan.term < self.term:
                continue
            self.term = plan.term
            if plan.epoch == self.epoch and plan.number == 0:
                self.is_asked = True
            elif plan.epoch == self.epoch and plan.number == START_OVER:
                del self.inbox[:plans]
                return self.restart()
            elif plan.epoch == self.epoch:
                assert plan.number == self.applied + 1
                self.applied = plan.number
                for command in plan.commands:
                    self._apply(command, retracted)
        del self.inbox[:plans]
        progress = self._compute(retracted)
        if self.is_asked:
            self.is_asked = False
            self.answer = Holdings(
                hello=self.hello(), applied=self.applied, number=self.number, sequences=list(self._held())
            )
        return progress

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def _held(self) -> Iterator[Held]:
        for sequence_id, running in self.running.items():
            if len(running.tokens) * 4 == len(running.admit.token_ids):  # in prefill
                yield Held(sequence_id=sequence_id)
            else:
                yield Held(
                    sequence_id=sequence_id,
                    num_outputs=len(running.tokens) - running.admit.num_prompt,
                    page_table=pack_i32(running.pages),
                    attempt=running.admit.attempt,
                    cached_prompt=running.admit.cached_prompt or 0,
                )

    def _apply(self, command: object, retracted: list[int]) -> None:
        match command:
            case Admit():
                tokens = list(unpack_i32(command.token_ids))
                pages = list(unpack_i32(command.page_table))
                assert command.sequence_id not in self.running
                assert 0 <= command.cached < len(tokens)
                assert len(pages) == len(set(pages))
                self.running[command.sequence_id] = Running(command, tokens, pages, command.cached)
            case Grant():
                running = self.running.get(command.sequence_id)
                if running is not None:
                    running.pages += unpack_i32(command.pages)
                    assert len(running.pages) == len(set(running.pages))
            case Drop():
                for sequence_id in command.sequence_ids:
                    self.running.pop(sequence_id, None)
            case Retract():
                for sequence_id in command.sequence_ids:
                    self.running.pop(sequence_id, None)
                    retracted.append(sequence_id)
                    self.num_retracted += 1

    def _compute(self, retracted: list[int]) -> Progress:
        budget = self.budget
        work: list[tuple[int, Running, int]] = []
        for sequence_id, running in self.running.items():
            left = len(running.tokens) - running.computed
            room = len(running.pages) * self.page_size - running.computed
            is_decode = running.has_copied and left == 1
            count = min(left, room) if is_decode else min(left, room, budget)
            if not is_decode:
                budget -= count
                if not running.has_copied and count:
                    running.has_copied = True
                    if running.admit.copy_from is not None:
                        target = running.pages[running.admit.cached // self.page_size]
                        for offset in range(self.page_size):
                            value = self.kv.get((running.admit.copy_from, offset))
                            if value is not None:
                                self.kv[target, offset] = value
            if count > 0:
                work.append((sequence_id, running, count))
        for _, running, count in work:
            for position in range(running.computed, running.computed + count):
                before = self._read(running, position - 1) if position else b""
                self.kv[running.pages[position // self.page_size], position % self.page_size] = digest(
                    before, running.tokens[position]
                )
                self.num_computed += 1
        ids, indices, tokens, ended, computed = [], [], [], [], []
        for sequence_id, running, count in work:
            running.computed += count
            if running.computed < len(running.tokens):
                computed.append((sequence_id, running.computed))
                continue
            self._check(running)
            token = next_token(self._read(running, running.computed - 1))
            index = len(running.tokens) - running.admit.num_prompt
            known = self.outputs.setdefault(sequence_id, {})
            assert known.setdefault(index, token) == token
            running.tokens.append(token)
            ids.append(sequence_id)
            indices.append(index)
            tokens.append(token)
            is_stop = token in running.admit.stop_token_ids
            if is_stop or index + 1 == running.admit.max_tokens:
                reason = FinishReason.STOP if is_stop else FinishReason.LENGTH
                ended.append(Ended(sequence_id=sequence_id, reason=reason, num_tokens=index + 1))
                self.ended[sequence_id] = ended[-1]
                del self.running[sequence_id]
        return Progress(
            worker=self.name,
            number=self.next_number(),
            epoch=self.epoch,
            applied=self.applied,
            at=time.time(),
            computed_ids=pack_i64(i for i, _ in computed),
            computed=pack_i32(c for _, c in computed),
            sequence_ids=pack_i64(ids),
            indices=pack_i32(indices),
            token_ids=pack_i32(tokens),
            ended=ended,
            retracted=pack_i64(retracted),
        )

    def _read(self, running: Running, position: int) -> bytes:
        return self.kv[running.pages[position // self.page_size], position % self.page_size]

    def _check(self, running: Running) -> None:
        state = b""
        for position in range(running.computed):
            state = digest(state, running.tokens[position])
            assert self._read(running, position) == state, f"position {position} was overwritten"
