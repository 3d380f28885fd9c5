"""When a gateway takes requests, and what it says is amiss."""

import time
from collections.abc import Iterable

import msgspec
import pytest

from services.gateway import deployment
from services.gateway.deployment import Deployment
from shared.errors import ModelNotFound, Unavailable
from shared.messages import Instance
from tests.services.gateway.conftest import an_instance

SERVICES = ("gateway", "tokenizer", "scheduler", "gpu_worker")


def everybody() -> list[Instance]:
    return [an_instance(service) for service in SERVICES]


def without(service: str) -> list[Instance]:
    return [one for one in everybody() if one.service != service]


def seeing(*views: Iterable[Instance]) -> Deployment:
    out = Deployment()
    for view in views:
        out.update(list(view))
    return out


@pytest.mark.parametrize("service", ["tokenizer", "scheduler", "gpu_worker"])
def test_who_never_saw_a_service_takes_nothing(service: str) -> None:
    there = seeing(without(service))
    assert not there.is_ready
    with pytest.raises(Unavailable):
        there.check("tiny")


def test_who_has_just_started_has_missed_nobody_for_long() -> None:
    """So that an answer that its client comes back for here is not ended before the first look around."""
    there = Deployment()
    assert not there.is_ready
    assert there.absent_for_s < 1


@pytest.mark.parametrize("service", ["tokenizer", "scheduler", "gpu_worker"])
def test_a_service_that_is_started_again_is_waited_for(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "SHORT_ABSENCE_S", 0.05)
    there = seeing(everybody(), without(service))
    assert there.is_ready
    assert there.faults() == [f"no {service}"]
    assert there.check("tiny").name == "tiny"
    with pytest.raises(ModelNotFound):
        there.check("other")
    time.sleep(0.06)
    there.update(without(service))
    assert not there.is_ready
    with pytest.raises(Unavailable):
        there.check("tiny")
    there.update(everybody())
    assert there.is_ready and not there.faults()


def test_one_of_several_that_starts_keeps_nobody_out() -> None:
    starting = msgspec.structs.replace(an_instance("gpu_worker"), instance="w2", is_ready=False, model=None)
    silent = msgspec.structs.replace(an_instance("tokenizer"), instance="t2", at=time.time() - 9)
    there = seeing([*everybody(), starting, silent])
    assert there.is_ready
    assert there.faults() == ["gpu_worker/w2 is starting", "tokenizer/t2 was last heard of 9 s ago"]


def test_a_scheduler_that_stands_by_is_no_fault() -> None:
    standby = msgspec.structs.replace(an_instance("scheduler"), instance="s2", is_ready=False)
    assert seeing([*everybody(), standby]).faults() == []
    assert seeing([*without("scheduler"), standby]).faults() == ["scheduler/s2 is starting"]


def test_a_gateway_that_stops_sends_balancers_away_first() -> None:
    there = seeing(everybody())
    there.is_leaving = True
    assert not there.is_ready
    assert there.faults() == ["this gateway is stopping"]
    assert there.check("tiny").name == "tiny"
    there.is_stopping = True
    with pytest.raises(Unavailable):
        there.check("tiny")
