"""When the set counts as ready."""

from services.launcher.plan import ProcessPlan
from services.launcher.readiness import judge
from shared.messages import HEARTBEAT_LAPSE_S, Instance

NOW = 1000.0
PLANS = [ProcessPlan(name, name.partition("-")[0], []) for name in ("scheduler-0", "gpu_worker-0", "gpu_worker-1")]


def instance(name: str, *, is_ready: bool = True, age_s: float = 0.5, model: str | None = None) -> Instance:
    return Instance(
        service=name.partition("-")[0],
        instance=name,
        host="h",
        pid=1,
        started_at=0,
        at=NOW - age_s,
        is_ready=is_ready,
        model=model,
        max_model_len=2048 if model else None,
    )


def test_a_process_that_has_not_registered_yet_is_waited_for() -> None:
    found = judge(PLANS, [instance("scheduler-0"), instance("gpu_worker-0", model="m")], NOW)
    assert (found.waiting, found.ready) == (["gpu_worker-1"], 2)


def test_starting_and_silent_processes_are_waited_for() -> None:
    seen = [
        instance("scheduler-0", age_s=HEARTBEAT_LAPSE_S + 1),
        instance("gpu_worker-0", is_ready=False),
        instance("gpu_worker-1"),
    ]
    assert judge(PLANS, seen, NOW).waiting == ["scheduler-0", "gpu_worker-0"]


def test_strangers_on_a_shared_broker_do_not_count() -> None:
    assert judge(PLANS, [instance("gpu_worker-77", model="other")], NOW).model is None


def test_the_served_model_is_what_a_worker_says() -> None:
    found = judge(PLANS, [instance(plan.name, model="m" if "worker" in plan.name else None) for plan in PLANS], NOW)
    assert (found.waiting, found.model, found.max_model_len) == ([], "m", 2048)


def test_a_scheduler_that_waits_for_its_turn_is_as_good_as_ready() -> None:
    plans = [*PLANS, ProcessPlan("scheduler-1", "scheduler", [])]
    workers = [instance("gpu_worker-0", model="m"), instance("gpu_worker-1", model="m")]
    standby = instance("scheduler-1", is_ready=False)
    assert judge(plans, [instance("scheduler-0"), standby, *workers], NOW).waiting == []
    nobody_leads = [instance("scheduler-0", is_ready=False), standby, *workers]
    assert judge(plans, nobody_leads, NOW).waiting == ["scheduler-0", "scheduler-1"]
