"""A scheduler with fake workers around it, and the requests given to them."""

import dataclasses
from dataclasses import dataclass, field

from services.scheduler.core.effects import (
    Acknowledge,
    Arrived,
    Command,
    Quarantine,
    ReadShards,
    Recovered,
    SendOutput,
    SendPlan,
)
from services.scheduler.core.scheduler import Event, Scheduler
from shared.messages import Ended, FinishReason, Generate, Progress, Sampling
from shared.packing import pack_i32
from tests.services.scheduler.fake_worker import FakeWorker, expected_output


@dataclass
class World:
    scheduler: Scheduler
    workers: dict[str, FakeWorker]
    now: float = 0.0
    prompts: dict[int, tuple[list[int], int, list[int]]] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)
    entries: int = 0
    late: list[Event] = field(default_factory=list)
    told: list[Ended] = field(default_factory=list)
    asked: list[ReadShards] = field(default_factory=list)
    arrived: list[Arrived] = field(default_factory=list)
    grammars: dict[int, str] = field(default_factory=dict)

    def apply(self, *events: Event, after: float = 0.01) -> list[Command]:
        self.now += after
        commands = self.scheduler.apply(events, self.now)
        for command in commands:
            match command:
                case SendPlan():
                    self.workers[command.worker].inbox.append(command.plan)
                case Acknowledge() | Quarantine():
                    self.acknowledged.append(command.entry_id)
                case SendOutput():
                    self.told += command.output.ended
                    self.failed |= {e.sequence_id for e in command.output.ended if e.reason is FinishReason.ERROR}
                case ReadShards():
                    self.asked.append(command)
        self.scheduler.check_integrity()
        asked, self.asked = self.asked, []
        for question in asked:
            commands += self.apply(self.recovered(question))
        for event in events:  # a worker's answer follows the report that it was asked before
            if isinstance(event, Progress):
                answer = self.workers[event.worker].answer
                if answer is not None and (answer.hello.epoch, answer.number) == (event.epoch, event.number):
                    commands += self.apply(answer)
        return commands

    def restart_scheduler(self, scheduler: Scheduler) -> None:
        """Another takes over: it finds the requests that are not acknowledged, and has heard nothing of the workers."""
        self.late = []
        self.scheduler = scheduler
        self.apply(
            *(
                dataclasses.replace(event, is_replayed=True)
                for event in self.arrived
                if event.entry_id not in self.acknowledged
            )
        )

    def recovered(self, question: ReadShards) -> Recovered:
        """What the shards say: all that any worker has given out."""
        ids = [one for ids in question.sequences.values() for one in ids]
        outputs, ended = {}, {}
        for sequence_id in ids:
            got: dict[int, int] = {}
            for worker in self.workers.values():
                got |= worker.outputs.get(sequence_id, {})
                if sequence_id in worker.ended:
                    ended[sequence_id] = worker.ended[sequence_id]
            outputs[sequence_id] = pack_i32(got[index] for index in sorted(got))
        return Recovered(question.worker, question.epoch, outputs, ended, frozenset(ids))

    def arrive(
        self,
        prompt: list[int],
        max_tokens: int = 4,
        stop: list[int] | None = None,
        n: int = 1,
        salt: str = "",
        deadline: float | None = None,
        priority: int = 0,
        grammar: str = "",
    ) -> list[int]:
        """One request; returns its sequence ids."""
        self.entries += 1
        ids = [self.entries * 100 + choice for choice in range(n)]
        for sequence_id in ids:
            self.prompts[sequence_id] = (prompt, max_tokens, stop or [])
            self.grammars[sequence_id] = grammar
        message = Generate(
            request_id=str(self.entries),
            sequence_ids=ids,
            shard=0,
            token_ids=pack_i32(prompt),
            sampling=Sampling(temperature=0.0),
            stop_token_ids=stop or [],
            max_tokens=max_tokens,
            cache_salt=salt,
            priority=priority,
            arrival=self.now,
            grammar=grammar,
        )
        self.arrived.append(Arrived(message, f"{self.entries}-0", deadline=deadline))
        self.apply(self.arrived[-1])
        return ids

    def catch_up(self) -> None:
        """The late reports arrive, in one batch."""
        late, self.late = self.late, []
        self.apply(*late)

    def run_out(self) -> None:
        """Steps until nothing is left to do."""
        for _ in range(5000):
            if not self.scheduler.sequences and not any(w.running or w.inbox for w in self.workers.values()):
                break
            for worker in self.workers.values():
                self.apply(worker.step())
        assert not self.scheduler.sequences, "requests are stuck"

    def expected(self, sequence_id: int, prompt: list[int], max_tokens: int, stop: list[int]) -> list[int]:
        """What the sequence gives when it runs alone."""
        return expected_output(prompt, max_tokens, stop)

    def check_end(self) -> None:
        for sequence_id, (prompt, max_tokens, stop) in self.prompts.items():
            got: dict[int, int] = {}
            for worker in self.workers.values():
                got |= worker.outputs.get(sequence_id, {})
            want = self.expected(sequence_id, prompt, max_tokens, stop)
            output = [got[index] for index in sorted(got)]
            if sequence_id in self.aborted or sequence_id in self.failed:
                assert output == want[: len(output)]
            else:
                assert output == want
        assert sorted(self.acknowledged) == sorted({f"{n + 1}-0" for n in range(self.entries)})
        for worker in self.scheduler.workers.values():
            assert not worker.running and not worker.retracting and not len(worker.waiting) and not worker.hungry
            assert worker.pool.num_free + worker.index.num_pages == worker.pool.num_pages
            assert worker.index.num_evictable == worker.index.num_pages
            assert worker.pending_prefill == 0
