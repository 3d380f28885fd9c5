"""Which processes are started, with which command lines."""

import msgspec
import pytest

from services.launcher.flags import ServeSettings
from services.launcher.plan import ProcessPlan, plan_services
from shared.errors import ConfigError
from shared.settings import from_values

SETTINGS = ServeSettings(model_path="/models/m", port=30000)


def plans_for(cpus: int = 8, flags: dict[str, object] | None = None, **changes: object) -> list[ProcessPlan]:
    settings = msgspec.structs.replace(SETTINGS, **changes)
    return plan_services(settings, flags or {}, "unix:///tmp/b.sock", cpus)


def command(plans: list[ProcessPlan], name: str) -> list[str]:
    return next(plan.command for plan in plans if plan.name == name)


def test_one_of_each_by_default_with_the_gateway_last() -> None:
    assert [plan.name for plan in plans_for()] == ["scheduler-0", "gpu_worker-0", "tokenizer-0", "gateway-0"]


def test_counts_make_as_many_processes_with_names_of_their_own() -> None:
    names = [plan.name for plan in plans_for(schedulers=2, workers=2, tokenizers=3, gateways=2)]
    assert len(names) == len(set(names)) == 9


def test_every_process_is_told_broker_and_name() -> None:
    for plan in plans_for():
        assert plan.environment == {"SAPWOOD_REDIS_URL": "unix:///tmp/b.sock"}
        assert not any("unix:" in argument for argument in plan.command), "a URL may hold a password"
        assert f"--instance={plan.name}" in plan.command


def test_only_who_reads_the_model_is_told_where_it_is() -> None:
    for plan in plans_for():
        assert ("--model-path=/models/m" in plan.command) == (plan.service in ("tokenizer", "gpu_worker"))


def test_gateways_share_the_port_only_when_there_are_several() -> None:
    assert "--no-reuse-port" in command(plans_for(), "gateway-0")
    assert "--reuse-port" in command(plans_for(gateways=2), "gateway-1")


def test_names_on_a_shared_broker_differ_between_launchers() -> None:
    first, second = (plans_for(redis_url="redis://broker") for _ in range(2))
    assert not {plan.name for plan in first} & {plan.name for plan in second}


def test_several_workers_share_the_cores_unless_told() -> None:
    assert "--threads=4" in command(plans_for(workers=2), "gpu_worker-0")
    assert not any("--threads" in argument for argument in command(plans_for(), "gpu_worker-0"))
    told = command(plans_for(workers=2, flags={"threads": "1"}), "gpu_worker-0")
    assert [argument for argument in told if "--threads" in argument] == ["--threads=1"]


def test_every_process_gets_a_metrics_port_of_its_own() -> None:
    plans = plans_for(workers=2, metrics_port=9100)
    ports = [next(part for part in plan.command if "--metrics-port" in part) for plan in plans]
    assert ports == [f"--metrics-port={9100 + index}" for index in range(5)]


def test_metrics_ports_past_the_last_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="--metrics-port 65533"):
        plans_for(metrics_port=65533)


def test_no_workers_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--workers \(SAPWOOD_WORKERS\)"):
        from_values(ServeSettings, {"workers": "0"}, env={})
