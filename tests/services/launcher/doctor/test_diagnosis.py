"""What is wrong with a set, from what is seen of it."""

import dataclasses
from typing import Any

import msgspec
import pytest

from services.launcher.doctor.diagnosis import findings
from services.launcher.doctor.snapshot import Broker, DeadLetters, Snapshot, Work
from shared.ledger import Ledger, WorkerLedger
from shared.messages import Instance

NOW = 1000.0


def an_instance(service: str, name: str, **changed: Any) -> Instance:
    one = Instance(service=service, instance=name, host="h", pid=1, started_at=900.0, at=NOW - 0.5, is_ready=True)
    if service in ("gpu_worker", "tokenizer"):
        one = msgspec.structs.replace(one, model="m")
    return msgspec.structs.replace(one, **changed)


def a_worker_ledger(**changed: Any) -> WorkerLedger:
    worker = WorkerLedger(
        worker="w-0",
        epoch=1,
        pool=10,
        free=6,
        cached=4,
        locked=0,
        private=0,
        imbalance=0,
        running=0,
        waiting=0,
        silent_s=0.1,
    )
    return msgspec.structs.replace(worker, **changed)


def a_ledger(**changed: Any) -> Ledger:
    ledger = Ledger(scheduler="s-0", at=NOW - 0.5, term=1, sequences=0, unplaced=0, workers=[a_worker_ledger()])
    return msgspec.structs.replace(ledger, **changed)


def a_set() -> Snapshot:
    """One of each service, idle and well."""
    return Snapshot(
        Broker("8.1.0", NOW, 1 << 20, 1 << 30, "noeviction", keeps=True, can_write=True),
        instances=[
            an_instance("gateway", "g-0"),
            an_instance("gpu_worker", "w-0"),
            an_instance("scheduler", "s-0"),
            an_instance("tokenizer", "t-0"),
        ],
        work={"tokenize": Work(0), "schedule": Work(2, has_group=True, pending=0)},
        lengths={"events": 3, "plan:w-0": 1, "tokens:0": 5},
        owners={0: "t-0"},
        leader="s-0",
        ledger=a_ledger(),
    )


def test_a_set_that_is_well_has_no_findings() -> None:
    assert findings(a_set()) == []


def broker(**changed: Any) -> dict[str, Any]:
    return {"broker": dataclasses.replace(a_set().broker, **changed)}


def instead(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "instances": [
            msgspec.structs.replace(one, **changed) if one.instance == name else one for one in a_set().instances
        ]
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (broker(version="6.0.9"), "the broker is version 6.0.9"),
        (broker(eviction="allkeys-lru"), "the broker may evict our streams (maxmemory-policy allkeys-lru)"),
        (broker(memory=1020 << 20), "the broker's memory is 100% full"),
        (broker(can_write=False), "the broker cannot write its append-only file"),
        ({"broken": ["tokenizer/x"]}, "the registry's entry tokenizer/x does not decode"),
        (instead("g-0", at=NOW - 7), "gateway g-0 (h, pid 1) was last heard of 7 s ago"),
        (instead("g-0", at=NOW + 9), "gateway g-0 (h, pid 1) has a clock 9 s ahead of the broker's"),
        (instead("g-0", is_ready=False), "gateway g-0 (h, pid 1) is not ready"),
        (instead("g-0", version="9"), "processes run different versions: , 9"),
        (instead("g-0", protocol=9), "processes speak different versions of the protocol (g-0 9, w-0 1, s-0 1, t-0 1)"),
        (instead("w-0", model="other"), "workers serve other and tokenizers m"),
        ({"work": {"tokenize": Work(4)}}, "tokenize: 4 entries and no tokenizer has ever read them"),
        (
            {"work": {"schedule": Work(5, has_group=True, unread=5, unread_s=12.0)}},
            "schedule: 5 entries unread, the oldest for 12 s",
        ),
        (
            {"work": {"tokenize": Work(5, has_group=True, pending=5, idle_s=30.0)}},
            "tokenize: 5 entries read and not finished, the oldest for 30 s",
        ),
        (
            {"work": {"schedule": Work(5, has_group=True, pending=5)}},
            "schedule: 5 requests are pending and the scheduler knows of none",
        ),
        ({"lengths": {"plan:gone": 2}, "unexpiring": ["plan:gone"]}, "plan:gone: plans for a worker that is not there"),
        ({"lengths": {"plan:w-0": 2000}}, "plan:w-0: 2000 plans wait"),
        ({"lengths": {"events": 20000}}, "events: 20000 reports wait"),
        ({"unexpiring": ["reply:g"]}, "reply:g would stay for ever"),
        ({"owners": {0: None}}, "tokens:0 (5 entries) is read by no tokenizer"),
        ({"owners": {0: "t-9"}}, "tokens:0 (5 entries) is leased to t-9, which is not heard of"),
        (
            {"dead": [DeadLetters("schedule.dead", 2, "bad")]},
            "schedule.dead: 2 dead letters, the last because: bad",
        ),
        ({"leader": None}, "no scheduler leads"),
        ({"leader": "s-9"}, "s-9 leads and is not heard of"),
        ({"ledger": None}, "the scheduler publishes no ledger"),
        ({"ledger": a_ledger(at=NOW - 8)}, "the ledger is 8 s old"),
        ({"ledger": a_ledger(workers=[])}, "the scheduler does not know worker w-0"),
        ({"ledger": a_ledger(workers=[a_worker_ledger(imbalance=2)])}, "worker w-0: +2 of 10 pages are in no place"),
        ({"ledger": a_ledger(workers=[a_worker_ledger(silent_s=6.0)])}, "worker w-0: silent for 6 s"),
    ],
)
def test_each_fault_is_said_and_nothing_else(changes: dict[str, Any], said: str) -> None:
    (finding,) = findings(dataclasses.replace(a_set(), **changes))
    assert finding.what == said
    assert finding.advice


def test_a_missing_service_is_said() -> None:
    snapshot = a_set()
    snapshot.instances = [one for one in snapshot.instances if one.service != "gateway"]
    assert [finding.what for finding in findings(snapshot)] == ["there is no gateway"]


def test_a_second_scheduler_that_waits_is_no_fault() -> None:
    snapshot = a_set()
    snapshot.instances.append(an_instance("scheduler", "s-1", is_ready=False))
    assert findings(snapshot) == []
