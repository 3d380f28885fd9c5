"""The scheduler's behaviour, one case at a time, over a fake worker that checks every page it reads."""

import pytest

from services.scheduler.core.effects import (
    Acknowledge,
    Arrived,
    Deaf,
    ForgetWorker,
    Quarantine,
    ReadShards,
    SendPlan,
    Waited,
)
from services.scheduler.core.scheduler import TELL, Scheduler, make_policy
from services.scheduler.core.sequence import SUSPECT_CRASHES, Phase
from services.scheduler.core.worker_state import Tuning
from shared.messages import (
    Abort,
    Admit,
    Died,
    Drop,
    Ended,
    FinishReason,
    Generate,
    Goodbye,
    Hello,
    Progress,
    Retract,
    Sampling,
)
from shared.packing import pack_i32, pack_i64
from tests.services.scheduler.fake_worker import FakeWorker
from tests.services.scheduler.world import World


def a_world(*workers: FakeWorker, policy: str = "lpm", aging: float = 0.0, lookahead: float = 100.0) -> World:
    tuning = Tuning(headroom=8, low_water=4, lookahead=lookahead)
    world = World(Scheduler(lambda: make_policy(policy, aging), tuning), {worker.name: worker for worker in workers})
    for worker in workers:
        world.apply(worker.hello())
    return world


def admitted(worker: FakeWorker) -> list[Admit]:
    return [command for plan in worker.inbox for command in plan.commands if isinstance(command, Admit)]


def commands(worker: FakeWorker, kind: type) -> list[object]:
    return [command for plan in worker.inbox for command in plan.commands if isinstance(command, kind)]


def step(world: World, times: int = 1) -> None:
    for _ in range(times):
        for worker in world.workers.values():
            world.apply(worker.step())


@pytest.mark.parametrize(("page_size", "max_tokens"), [(16, 1), (16, 8), (16, 40), (1, 3)])
def test_a_repeated_prompt_is_cached_to_the_last_token_but_one(page_size: int, max_tokens: int) -> None:
    worker = FakeWorker(page_size=page_size, num_pages=2000 // page_size, budget=512)
    world = a_world(worker)
    prompt = [number % 5 for number in range(1000)]
    for _ in range(2):
        world.arrive(prompt, max_tokens)
        world.run_out()
    assert world.scheduler.num_cached_tokens == 999
    assert worker.num_computed == 1000 + max_tokens - 1 + 1 + max_tokens - 1
    world.check_end()


def test_choices_and_simultaneous_requests_compute_their_prompt_once() -> None:
    worker = FakeWorker(num_pages=200, page_size=4, budget=8)
    world = a_world(worker)
    prompt = [number % 5 for number in range(40)]
    world.arrive(prompt, max_tokens=1, n=4)
    world.arrive(prompt, max_tokens=1)
    world.run_out()
    world.check_end()
    # ten pages once; the others match 39 tokens, 36 of them by promise: the tail of a promised page is computed
    assert worker.num_computed <= 40 + 4 * 4


def test_an_aborted_sequence_goes_on_while_others_wait_for_its_pages() -> None:
    worker = FakeWorker(num_pages=100, page_size=4, budget=4)
    world = a_world(worker)
    prompt = [number % 5 for number in range(40)]
    (first,) = world.arrive(prompt)
    world.arrive([*prompt, 1, 1])
    step(world)  # the first 4 tokens of 40 are there, the rest is promised
    assert [admit.cached for admit in admitted(worker)] == []
    world.aborted.add(first)
    world.apply(Abort(sequence_ids=[first]))
    assert not commands(worker, Drop)
    assert first not in world.scheduler.sequences  # for its client it is over
    assert [ended.reason for ended in world.told] == [FinishReason.ABORT]
    world.run_out()
    world.check_end()


def test_an_aborted_sequence_that_nobody_waits_for_is_dropped_at_once() -> None:
    worker = FakeWorker(num_pages=100, page_size=4, budget=4)
    world = a_world(worker)
    (first,) = world.arrive([number % 5 for number in range(40)])
    step(world, 2)
    world.aborted.add(first)
    world.apply(Abort(sequence_ids=[first]))
    assert commands(worker, Drop) == [Drop(sequence_ids=[first])]
    state = world.scheduler.workers["w"]
    assert state.pool.num_free == 98  # two pages were computed, and stay as cache
    assert state.index.num_evictable == 2
    assert world.acknowledged == ["1-0"]


def test_abort_before_the_request_wins() -> None:
    worker = FakeWorker()
    world = a_world(worker)
    world.apply(Abort(sequence_ids=[100]))
    world.arrive([1, 2, 3])
    assert not admitted(worker)
    assert world.acknowledged == ["1-0"]


def test_a_request_that_comes_twice_runs_once() -> None:
    worker = FakeWorker()
    world = a_world(worker)
    message = Generate(
        request_id="r",
        sequence_ids=[100],
        shard=0,
        token_ids=pack_i32([1, 2]),
        sampling=Sampling(),
        max_tokens=2,
    )
    world.prompts[100] = ([1, 2], 2, [])
    world.entries = 2
    world.apply(Arrived(message, "1-0"), Arrived(message, "2-0"))
    assert world.acknowledged == ["1-0"]  # the broker may have lost it
    world.run_out()
    assert len(worker.outputs[100]) == 2
    assert world.acknowledged == ["1-0", "2-0"]


def test_retraction_takes_the_newest_and_keeps_its_pages_as_cache() -> None:
    worker = FakeWorker(num_pages=10, page_size=4, budget=64)
    world = a_world(worker)
    first, second = world.arrive([0, 1, 2, 3] * 3, 24)[0], world.arrive([4, 3, 2, 1] * 3, 24)[0]
    while not commands(worker, Retract):
        step(world)
        assert world.scheduler.sequences, "the pool was never short"
    assert commands(worker, Retract) == [Retract(sequence_ids=[second])]
    assert world.scheduler.sequences[second].phase is Phase.RETRACTING
    assert world.scheduler.sequences[first].phase is Phase.RUNNING
    world.run_out()
    world.check_end()
    assert worker.num_retracted >= 1


def test_every_admission_names_the_grammar() -> None:
    worker = FakeWorker(num_pages=10, page_size=4, budget=64)
    world = a_world(worker)
    free, bound = world.arrive([0, 1, 2, 3] * 3, 24)[0], world.arrive([4, 3, 2, 1] * 3, 24, grammar="grammar:x")[0]
    grammars: dict[int, list[str]] = {free: [], bound: []}
    while world.scheduler.sequences:
        for admit in commands(worker, Admit):
            assert isinstance(admit, Admit)
            grammars[admit.sequence_id].append(admit.grammar)
        step(world)
    assert grammars == {free: [""], bound: ["grammar:x"] * worker.num_retracted + ["grammar:x"]}
    assert worker.num_retracted >= 1


def test_longest_prefix_first() -> None:
    worker = FakeWorker(num_pages=100, page_size=4, max_running=1, budget=64)
    world = a_world(worker)
    cached = [0, 1, 2, 3] * 4
    world.arrive(cached, 1)
    step(world, 2)
    blocker = world.arrive([4] * 8, 3)[0]
    plain, sharing = world.arrive([3] * 8, 1)[0], world.arrive([*cached, 1], 1)[0]
    order = []
    while world.scheduler.sequences:
        order += [admit.sequence_id for admit in admitted(worker)]
        step(world)
    assert order == [blocker, sharing, plain]


def test_the_order_follows_a_prefix_that_appears_while_they_wait() -> None:
    worker = FakeWorker(num_pages=100, page_size=4, max_running=1, budget=64)
    world = a_world(worker)
    stem = [0, 1, 2, 3] * 4
    blocker = world.arrive(stem, 2)[0]
    plain, sharing = world.arrive([3] * 8, 1)[0], world.arrive([*stem, 1], 1)[0]
    order = []
    while world.scheduler.sequences:
        order += [admit.sequence_id for admit in admitted(worker)]
        step(world)
    assert order == [blocker, sharing, plain]


@pytest.mark.parametrize(("policy", "aging"), [("fcfs", 0.0), ("lpm", 1e6)])
def test_age_before_prefix(policy: str, aging: float) -> None:
    worker = FakeWorker(num_pages=100, page_size=4, max_running=1, budget=64)
    world = a_world(worker, policy=policy, aging=aging)
    stem = [0, 1, 2, 3] * 4
    blocker = world.arrive(stem, 2)[0]
    plain, sharing = world.arrive([3] * 8, 1)[0], world.arrive([*stem, 1], 1)[0]
    order = []
    while world.scheduler.sequences:
        order += [admit.sequence_id for admit in admitted(worker)]
        step(world)
    assert order == [blocker, plain, sharing]


def test_higher_priority_first() -> None:
    worker = FakeWorker(num_pages=100, page_size=4, max_running=1, budget=64)
    world = a_world(worker)
    blocker, low = world.arrive([1] * 8, 2)[0], world.arrive([2] * 8, 1)[0]
    high = world.arrive([3] * 8, 1, priority=5)[0]
    order = []
    while world.scheduler.sequences:
        order += [admit.sequence_id for admit in admitted(worker)]
        step(world)
    assert order == [blocker, high, low]


def test_a_sequence_that_the_worker_can_not_run_leaves_nothing_and_those_that_relied_on_it_start_again() -> None:
    worker = FakeWorker(num_pages=100, page_size=4, budget=4)
    world = a_world(worker)
    prompt = [number % 5 for number in range(40)]
    (first,) = world.arrive(prompt)
    (second,) = world.arrive([*prompt, 1, 1])
    step(world, 2)
    worker.running.pop(first)
    failure = Ended(sequence_id=first, reason=FinishReason.ERROR, num_tokens=0)
    world.failed.add(first)
    number = worker.next_number()
    world.apply(
        Progress(worker="w", epoch=worker.epoch, applied=worker.applied, at=0.0, ended=[failure], number=number),
    )
    assert commands(worker, Retract) == [Retract(sequence_ids=[second])]
    assert world.scheduler.workers["w"].pool.num_free == 100
    world.run_out()
    world.check_end()


def test_what_was_computed_over_pages_that_nobody_filled_is_not_cached() -> None:
    worker = FakeWorker(num_pages=64, page_size=4, budget=100)
    world = a_world(worker)
    prompt = [number % 5 for number in range(21)]
    (first,) = world.arrive(prompt, 8)
    (second,) = world.arrive([*prompt[:16], 4, 3, 2, 1, 4, 3, 2], 8)
    assert [admit.cached for admit in admitted(worker)] == [0, 16]
    worker.budget = 0
    step(world)  # takes both in
    worker.budget = 100
    worker.running.pop(first)
    world.failed.add(first)
    world.apply(
        Progress(
            worker="w",
            epoch=worker.epoch,
            applied=worker.applied,
            at=0.0,
            number=worker.next_number(),
            computed_ids=pack_i64([second]),
            computed=pack_i32([23]),
            ended=[Ended(sequence_id=first, reason=FinishReason.ERROR, num_tokens=0)],
        )
    )
    assert world.scheduler.workers["w"].index.match(pack_i32(prompt), 20).num_tokens == 0
    assert commands(worker, Retract) == [Retract(sequence_ids=[second])]
    world.run_out()
    world.check_end()


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    worker = FakeWorker(max_running=1)
    world = a_world(worker)
    running = world.arrive([1, 2, 3], 12, deadline=5.0)[0]
    waiting = world.arrive([4, 4, 4], 12, deadline=5.0)[0]
    step(world)
    world.apply(after=5.0)
    assert {ended.sequence_id: ended.error.status for ended in world.told if ended.error} == {
        running: 504,
        waiting: 504,
    }
    assert commands(worker, Drop) == [Drop(sequence_ids=[running])]
    assert sorted(world.acknowledged) == ["1-0", "2-0"]


def test_what_fits_no_worker_is_refused_with_the_numbers() -> None:
    world = a_world(FakeWorker(num_pages=4, page_size=4))
    world.arrive([1] * 10, 7)
    (ended,) = world.told
    assert ended.error is not None
    assert ended.error.status == 400
    assert "16" in ended.error.message


def test_without_a_worker_requests_wait_and_then_end_with_503() -> None:
    world = a_world()
    world.arrive([1, 2])
    world.apply(after=59)
    assert not world.told
    world.apply(after=2)
    assert [ended.error.status for ended in world.told if ended.error] == [503]


def test_a_first_worker_takes_what_waited_for_it() -> None:
    world = a_world()
    world.arrive([1, 2])
    worker = world.workers["w"] = FakeWorker()
    world.apply(worker.hello())
    world.run_out()
    world.check_end()


def test_a_silent_workers_requests_go_on_elsewhere_with_what_they_have() -> None:
    dies, lives = FakeWorker(name="dies"), FakeWorker(name="lives", max_running=0)
    world = a_world(dies)
    (sequence,) = world.arrive([1, 2, 3], 10)
    step(world, 4)
    done = world.scheduler.sequences[sequence].num_output
    assert done >= 3
    lives.max_running = 8
    world.workers = {"lives": lives, "dies": dies}
    world.apply(lives.hello())
    for _ in range(30):
        world.apply(lives.step(), after=1.0)
    assert "dies" not in world.scheduler.workers
    assert min(lives.outputs[sequence]) == done
    world.check_end()


def test_a_worker_that_says_goodbye_is_forgotten_at_once() -> None:
    worker = FakeWorker()
    world = a_world(worker)
    world.arrive([1, 2, 3], 10)
    out = world.apply(Goodbye(worker="w", epoch=1))
    assert ForgetWorker("w") in out
    again = world.workers["w"] = FakeWorker(epoch=2)
    world.apply(again.hello())
    world.run_out()
    world.check_end()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_request_that_loses_its_worker_again_and_again_ends_with_500(hangs: bool) -> None:
    worker = FakeWorker()
    world = a_world(worker)
    world.arrive([1, 2, 3], 10)
    for _ in range(SUSPECT_CRASHES):
        assert not world.told
        step(world)
        if hangs:
            out = world.apply(after=7.0)
            world.apply(Died(worker="w"))  # its watchdog's work
            world.apply(worker.restart())
        else:
            out = world.apply(worker.restart())
    (error,) = [ended.error for ended in world.told if ended.error]
    assert error.status == 500
    assert error.message.startswith("request 1 was running alone when its worker died")
    assert [command.entry_id for command in out if isinstance(command, Quarantine)] == ["1-0"]


def test_a_worker_that_is_silent_and_comes_back_has_not_died() -> None:
    worker = FakeWorker(num_pages=64, page_size=4)
    world = a_world(worker)
    (request,) = world.arrive([1, 2, 3], 60)
    for _ in range(SUSPECT_CRASHES + 1):
        step(world, 3)
        world.apply(after=7.0)
        assert "w" not in world.scheduler.workers
        world.apply(worker.step())  # learns that it is to start over
        step(world, 3)
        assert not world.told
    world.run_out()
    assert not world.failed
    assert min(worker.outputs[request]) < max(worker.outputs[request])
    world.check_end()


def test_requests_beside_one_that_kills_workers_are_answered() -> None:
    """Whoever ran when two workers died runs alone from then on, and so only the guilty one is left with a worker
    that dies."""
    worker = FakeWorker(num_pages=64)
    world = a_world(worker)
    (innocent,) = world.arrive([1, 2, 3], 10)
    (poison,) = world.arrive([3, 2, 1], 10)
    (other,) = world.arrive([2, 2, 2], 10)
    deaths = 0
    while poison in world.scheduler.sequences:
        step(world)
        if len(worker.outputs.get(poison, {})) >= 3 and poison in worker.running:
            deaths += 1
            world.apply(worker.restart())
        if deaths >= SUSPECT_CRASHES:
            assert len(worker.running) <= 1
    assert deaths == SUSPECT_CRASHES + 1
    world.run_out()
    assert world.failed == {poison}
    for sequence in (innocent, other):
        assert sorted(worker.outputs[sequence]) == list(range(10))


def test_a_worker_whose_process_is_said_to_have_died_is_given_up_at_once() -> None:
    dies, lives = FakeWorker(name="dies"), FakeWorker(name="lives")
    world = a_world(dies)
    (sequence,) = world.arrive([1, 2, 3], 10)
    step(world, 3)
    world.workers["lives"] = lives
    world.apply(lives.hello())
    out = world.apply(Died(worker="dies"))
    assert ForgetWorker("dies") in out
    assert sequence in world.scheduler.workers["lives"].running
    assert world.apply(Died(worker="dies")) == []
    del dies.inbox[:]
    world.run_out()
    world.check_end()


def test_output_that_a_dead_worker_did_not_report_is_not_computed_again() -> None:
    dies, lives = FakeWorker(name="dies"), FakeWorker(name="lives")
    world = a_world(dies)
    (sequence,) = world.arrive([1, 2, 3], 10)
    step(world, 2)
    dies.step()  # its tokens reach the shard, its report nobody
    world.workers["lives"] = lives
    world.apply(lives.hello())
    out = world.apply(Died(worker="dies"))
    (question,) = [command for command in out if isinstance(command, ReadShards)]
    assert question == ReadShards("dies", 1, {0: [sequence]}, is_fenced=True)
    assert world.scheduler.sequences[sequence].num_output == 3
    world.run_out()
    assert min(lives.outputs[sequence]) == 3
    world.check_end()


def test_a_worker_that_comes_back_after_it_was_given_up_starts_over() -> None:
    """What it would write in its old epoch counts for nobody: the shards are fenced against it."""
    worker = FakeWorker(num_pages=64)
    world = a_world(worker)
    world.arrive([1, 2, 3], 10)
    step(world, 3)
    world.apply(after=10.0)
    assert not world.scheduler.workers
    assert isinstance(worker.step(), Hello)
    assert worker.epoch == 2
    world.apply(worker.hello())
    world.run_out()
    world.check_end()


def test_an_unknown_worker_is_asked_once_what_it_holds() -> None:
    worker = FakeWorker(epoch=7)
    world = a_world()
    world.workers["w"] = worker
    report = worker.step()
    out = [command for _ in range(3) for command in world.apply(report)]
    (plan,) = [command.plan for command in out if isinstance(command, SendPlan)]
    assert (plan.epoch, plan.number) == (7, TELL)


def a_new_scheduler() -> Scheduler:
    return Scheduler(lambda: make_policy("lpm", 0.0), Tuning(headroom=8, low_water=4, lookahead=100.0), term=1)


def test_a_new_scheduler_lets_workers_decode_on() -> None:
    worker = FakeWorker(num_pages=64)
    world = a_world(worker)
    stem = [1, 2, 3, 4, 1, 2, 3, 4]
    first, second = world.arrive([*stem, 1], 30), world.arrive([*stem, 2], 30)
    step(world, 5)
    epoch, computed = worker.epoch, worker.num_computed
    world.restart_scheduler(a_new_scheduler())
    assert not world.scheduler.workers
    step(world, 2)
    running = world.scheduler.workers["w"].running
    assert set(running) == {*first, *second}
    assert [sequence.tree_pages >= 2 for sequence in running.values()] == [True, True], "the stem is shared"
    world.run_out()
    assert worker.epoch == epoch
    assert worker.num_computed - computed < 2 * 30, "something was computed twice"
    world.check_end()


def test_a_new_scheduler_starts_what_no_worker_holds() -> None:
    worker = FakeWorker(num_pages=64, max_running=1)
    world = a_world(worker)
    world.arrive([1, 2, 3], 20)
    (waiting,) = world.arrive([3, 2, 1], 4)
    step(world, 3)
    world.restart_scheduler(a_new_scheduler())
    step(world, 2)
    assert world.scheduler.sequences[waiting].phase is Phase.LOST
    world.run_out()
    world.check_end()


def test_a_new_scheduler_ends_what_has_ended_meanwhile() -> None:
    worker = FakeWorker()
    world = a_world(worker)
    world.arrive([1, 2, 3], 3)
    for _ in range(5):
        worker.step()  # it ends, and nobody hears of it
        world.workers["w"] = worker
    world.restart_scheduler(a_new_scheduler())
    world.run_out()
    assert worker.num_computed <= 5, "it was computed again"
    world.check_end()


def test_a_worker_heeds_no_scheduler_of_an_earlier_term() -> None:
    worker = FakeWorker(num_pages=64)
    world = a_world(worker)
    old = world.scheduler
    world.arrive([1, 2, 3], 20)
    step(world, 3)
    world.restart_scheduler(a_new_scheduler())
    step(world, 2)
    late = old.apply([world.arrived[0], Abort(sequence_ids=list(worker.running))], world.now + 1)
    plans = [command.plan for command in late if isinstance(command, SendPlan)]
    assert plans
    worker.inbox += plans
    world.run_out()
    world.check_end()


def test_a_report_that_comes_twice_counts_once_and_one_that_is_lost_is_noticed() -> None:
    worker = FakeWorker(num_pages=64)
    world = a_world(worker)
    (sequence,) = world.arrive([1, 2, 3], 20)
    step(world, 2)
    report = worker.step()
    world.apply(report)
    world.apply(report)
    worker.step()  # lost
    world.apply(worker.step())
    assert world.scheduler.sequences[sequence].phase is Phase.LOST
    step(world)
    assert world.scheduler.sequences[sequence].phase is Phase.RUNNING
    assert worker.epoch == 1
    world.run_out()
    world.check_end()


def test_silence_that_is_the_brokers_costs_nobody_his_place() -> None:
    worker = FakeWorker()
    world = a_world(worker)
    world.arrive([1, 2, 3], 10)
    step(world)
    for _ in range(20):
        world.apply(Deaf(), after=1.0)
    assert "w" in world.scheduler.workers
    world.apply(after=20.0)
    assert "w" not in world.scheduler.workers


def test_reports_of_an_earlier_epoch_count_for_nothing() -> None:
    worker = FakeWorker()
    world = a_world(worker)
    (sequence,) = world.arrive([1, 2, 3], 10)
    step(world)
    late = worker.step()
    world.apply(worker.restart())
    assert world.scheduler.sequences[sequence].num_output == 2  # the shard knows what the report would have said
    world.apply(late)
    assert world.scheduler.sequences[sequence].num_output == 2
    world.run_out()
    world.check_end()


def test_an_idle_worker_takes_over_what_waits_elsewhere() -> None:
    one = FakeWorker(name="one", max_running=1, num_pages=100)
    world = a_world(one)
    for number in range(4):
        world.arrive([number] * 6, 30)
    two = world.workers["two"] = FakeWorker(name="two", max_running=1, num_pages=100)
    world.apply(two.hello())
    assert len(admitted(two)) == 1
    world.run_out()
    world.check_end()


def test_nothing_new_goes_to_a_silent_worker_while_another_is_heard() -> None:
    silent, heard = FakeWorker(name="silent", num_pages=100), FakeWorker(name="heard", num_pages=100)
    world = a_world(silent, heard)
    world.apply(heard.step(), after=3.0)
    for number in range(4):
        world.arrive([number] * 6, 1)
    assert not admitted(silent)
    assert len(admitted(heard)) == 4


def test_a_request_goes_where_its_prefix_is() -> None:
    one, two = FakeWorker(name="one", num_pages=100), FakeWorker(name="two", num_pages=100)
    world = a_world(one, two)
    stems = [[0, 1, 2, 3] * 5, [4, 3, 2, 1] * 5]
    for stem in stems:
        world.arrive(stem, 1)
    world.run_out()
    before = world.scheduler.num_cached_tokens
    for stem in stems * 3:
        world.arrive([*stem, 1], 1)
        world.run_out()
    assert world.scheduler.num_cached_tokens - before == 6 * 20


def test_a_traced_request_tells_how_long_it_waited() -> None:
    worker = FakeWorker(max_running=1)
    world = a_world(worker)
    message = Generate(
        request_id="r",
        sequence_ids=[100],
        shard=0,
        token_ids=pack_i32([1, 2]),
        sampling=Sampling(),
        max_tokens=2,
    )
    out = world.apply(Arrived(message, "1-0", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"))
    (waited,) = [command for command in out if isinstance(command, Waited)]
    assert (waited.sequence_id, waited.worker, waited.since) == (100, "w", world.now)
    while world.scheduler.sequences:
        out = world.apply(worker.step())
    assert Acknowledge("1-0") in out


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="lpm and fcfs"):
        make_policy("best", 0)
