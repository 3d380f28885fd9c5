"""Random histories of arrivals, aborts, steps, late messages and restarts on small pools.

After every event the page ledger balances; the fake worker finds every key and value that it reads right; at the end
every request that nobody aborted has exactly the output that it has alone, and nothing is left over.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from services.scheduler.core.effects import Acknowledge, Arrived, SendOutput, SendPlan
from services.scheduler.core.scheduler import Event, Scheduler, make_policy
from services.scheduler.core.worker_state import Tuning
from shared.messages import Abort, FinishReason, Generate, Sampling
from shared.packing import pack_i32
from tests.services.scheduler.fake_worker import VOCABULARY, FakeWorker, expected_output


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

    def apply(self, *events: Event) -> None:
        self.now += 0.01
        for command in self.scheduler.apply(events, self.now):
            match command:
                case SendPlan():
                    self.workers[command.worker].inbox.append(command.plan)
                case Acknowledge():
                    self.acknowledged.append(command.entry_id)
                case SendOutput():
                    self.failed |= {e.sequence_id for e in command.output.ended if e.reason is FinishReason.ERROR}
        self.scheduler.check_integrity()

    def arrive(self, prompt: list[int], max_tokens: int, stop: list[int], n: int = 1, salt: str = "") -> None:
        self.entries += 1
        ids = [self.entries * 100 + choice for choice in range(n)]
        for sequence_id in ids:
            self.prompts[sequence_id] = (prompt, max_tokens, stop)
        message = Generate(
            request_id=str(self.entries),
            sequence_ids=ids,
            shard=0,
            token_ids=pack_i32(prompt),
            sampling=Sampling(),
            stop_token_ids=stop,
            max_tokens=max_tokens,
            cache_salt=salt,
            arrival=self.now,
        )
        self.apply(Arrived(message, f"{self.entries}-0"))

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

    def check_end(self) -> None:
        for sequence_id, (prompt, max_tokens, stop) in self.prompts.items():
            got: dict[int, int] = {}
            for worker in self.workers.values():
                got |= worker.outputs.get(sequence_id, {})
            want = expected_output(prompt, max_tokens, stop)
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


prefixes = st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=14)


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Prompts that share prefixes often: one of few stems, cut anywhere, and a few tokens of its own."""
    stem = draw(
        st.sampled_from([[0, 1, 2, 3] * 6, [0, 1, 2, 3] * 3 + [4, 4, 4, 4] * 3, [1] * 20, [0, 1, 2, 3, 0, 2] * 4])
    )
    return stem[: draw(st.integers(1, len(stem)))] + draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=6))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_history_keeps_the_ledger_and_the_answers(data: st.DataObject) -> None:
    page_size = data.draw(st.sampled_from([1, 4]))
    workers = {
        name: FakeWorker(
            name=name,
            page_size=page_size,
            num_pages=data.draw(st.integers(44, 70)) // page_size,
            max_running=data.draw(st.integers(1, 6)),
            budget=data.draw(st.sampled_from([3, 8, 64])),
        )
        for name in ["w0", "w1"][: data.draw(st.integers(1, 2))]
    }
    tuning = Tuning(headroom=data.draw(st.sampled_from([1, 4, 9])), low_water=data.draw(st.sampled_from([1, 3])))
    policy = data.draw(st.sampled_from(["lpm", "fcfs"]))
    world = World(Scheduler(lambda: make_policy(policy, 10.0), tuning), workers)
    for worker in workers.values():
        world.apply(worker.hello())
    actions = st.sampled_from(["arrive", "arrive", "step", "step", "step", "part", "abort", "early", "restart"])
    for action in data.draw(st.lists(actions, min_size=5, max_size=40)):
        worker = workers[data.draw(st.sampled_from(sorted(workers)))]
        match action:
            case "arrive":
                world.arrive(
                    data.draw(prompts()),
                    data.draw(st.integers(1, 14)),
                    data.draw(st.sampled_from([[], [], [4]])),
                    data.draw(st.sampled_from([1, 1, 3])),
                    data.draw(st.sampled_from(["", "", "other"])),
                )
            case "step":
                world.late.append(worker.step())
                world.catch_up()
            case "part":  # the worker reads only some of its plans, and its report is late
                world.late.append(worker.step(plans=1))
            case "abort" if world.scheduler.sequences:
                victim = data.draw(st.sampled_from(sorted(world.scheduler.sequences)))
                world.aborted.add(victim)
                world.apply(Abort(sequence_ids=[victim]))
            case "early":  # an abort that overtakes its request
                victim = (world.entries + 1) * 100
                world.aborted.add(victim)
                world.apply(Abort(sequence_ids=[victim]))
            case "restart" if data.draw(st.integers(0, 3)) == 0:
                world.late.append(worker.restart())
    world.catch_up()
    world.run_out()
    world.check_end()
