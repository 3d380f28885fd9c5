"""Random histories of arrivals, aborts, steps, messages late, twice or lost, and restarts, on small pools.

After every event the page ledger balances; the fake worker finds every key and value that it reads right; at the end
every request that nobody aborted has exactly the output that it has alone, and nothing is left over.
"""

import itertools

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from services.scheduler.core.scheduler import Scheduler, make_policy
from services.scheduler.core.worker_state import Tuning
from shared.messages import Abort
from tests.services.scheduler.fake_worker import FakeWorker
from tests.services.scheduler.prompts import prompts
from tests.services.scheduler.world import World


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
    tuning = Tuning(
        headroom=data.draw(st.sampled_from([1, 4, 9])),
        low_water=data.draw(st.sampled_from([1, 3])),
        lookahead=data.draw(st.sampled_from([2.0, 100.0])),
    )
    policy = data.draw(st.sampled_from(["lpm", "fcfs"]))
    terms = itertools.count(1)

    def a_scheduler() -> Scheduler:
        return Scheduler(lambda: make_policy(policy, 10.0), tuning, term=next(terms))

    world = World(a_scheduler(), workers)
    for worker in workers.values():
        world.apply(worker.hello())
    actions = st.sampled_from(
        ["arrive"] * 2 + ["step"] * 4 + ["part", "abort", "early", "restart", "takeover", "twice", "lose", "settle"]
    )
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
            case "takeover" if data.draw(st.integers(0, 3)) == 0:
                world.restart_scheduler(a_scheduler())
            case "twice":
                world.catch_up()
                report = worker.step()
                world.apply(report)
                world.apply(report)
            case "lose" if data.draw(st.integers(0, 3)) == 0:
                world.catch_up()
                worker.step()
            case "settle":
                world.apply(after=data.draw(st.sampled_from([0.5, 2.0, 10.0])))
    world.catch_up()
    world.run_out()
    world.check_end()
