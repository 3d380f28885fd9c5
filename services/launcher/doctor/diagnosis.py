"""From what is seen to what is wrong. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.launcher.doctor.snapshot import Snapshot
from shared.messages import HEARTBEAT_LAPSE_S, Instance
from shared.registry import SERVICES, stands_by

OLDEST_BROKER = (6, 2)
FULL = 0.9
SKEW_S = 2.0
UNREAD_S = 10.0
LOG_LENGTH = 10_000
PLAN_LENGTH = 1000
LEDGER_AGE_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and what to do about it."""

    what: str
    advice: str


def findings(snapshot: Snapshot) -> list[Finding]:
    """Everything that is wrong; empty: the set is well."""
    return [
        Finding(what, advice)
        for look in (_broker, _processes, _models, _work, _logs, _shards, _dead_letters, _leader, _ledger)
        for what, advice in look(snapshot)
    ]


Said = Iterator[tuple[str, str]]


def _broker(snapshot: Snapshot) -> Said:
    broker = snapshot.broker
    version = tuple(int(part) for part in broker.version.split(".")[:2] if part.isdigit())
    if version < OLDEST_BROKER:
        yield f"the broker is version {broker.version}", "Sapwood needs Redis 6.2 or later, or Valkey"
    if broker.max_memory and broker.eviction != "noeviction":
        yield (
            f"the broker may evict our streams (maxmemory-policy {broker.eviction})",
            "set maxmemory-policy noeviction",
        )
    if broker.max_memory and broker.memory > FULL * broker.max_memory:
        share = broker.memory / broker.max_memory
        yield f"the broker's memory is {share:.0%} full", "raise maxmemory, or see below for what is not being read"
    if not broker.can_write:
        yield "the broker cannot write its append-only file", "see its log; its disk may be full"


def _is_fresh(one: Instance, snapshot: Snapshot) -> bool:
    return snapshot.broker.now - one.at < HEARTBEAT_LAPSE_S


def _live(snapshot: Snapshot, service: str) -> list[Instance]:
    return [one for one in snapshot.instances if one.service == service and _is_fresh(one, snapshot)]


def _processes(snapshot: Snapshot) -> Said:
    for name in snapshot.broken:
        yield f"the registry's entry {name} does not decode", "two versions of Sapwood may share this broker and prefix"
    there = {one.service for one in snapshot.instances}
    for service in SERVICES:
        if service not in there:
            yield f"there is no {service}", f"start one: python -m services.{service}, or sapwood serve"
    for one in snapshot.instances:
        name = f"{one.service} {one.instance} ({one.host}, pid {one.pid})"
        if one.at - snapshot.broker.now > SKEW_S:
            yield (
                f"{name} has a clock {one.at - snapshot.broker.now:.0f} s ahead of the broker's",
                "synchronise the clocks: deadlines and lapses are told by them",
            )
        elif not _is_fresh(one, snapshot):
            yield (
                f"{name} was last heard of {snapshot.broker.now - one.at:.0f} s ago",
                "if it runs it hangs or cannot reach the broker: see its log, and restart it",
            )
        elif not one.is_ready and not stands_by(one, snapshot.instances, snapshot.broker.now):
            yield (
                f"{name} is not ready",
                "it is loading, or waits for its predecessor's lock; see its log if it stays so",
            )


def _models(snapshot: Snapshot) -> Said:
    versions = {one.version for one in snapshot.instances}
    if len(versions) > 1:
        yield f"processes run different versions: {', '.join(sorted(versions))}", "finish the upgrade"
    protocols = {one.protocol for one in snapshot.instances}
    if len(protocols) > 1:
        told = ", ".join(f"{one.instance} {one.protocol}" for one in snapshot.instances)
        yield f"processes speak different versions of the protocol ({told})", "stop the set and start one version"
    workers = {one.model for one in _live(snapshot, "gpu_worker") if one.is_ready}
    tokenizers = {one.model for one in _live(snapshot, "tokenizer") if one.is_ready}
    if len(workers | tokenizers) > 1:
        yield (
            f"workers serve {_names(workers)} and tokenizers {_names(tokenizers)}",
            "start all of them with the same --model-path and --served-model-name",
        )


def _names(models: set[str | None]) -> str:
    return ", ".join(sorted(str(model) for model in models)) or "nothing"


def _work(snapshot: Snapshot) -> Said:
    for name, work in snapshot.work.items():
        reader = {"tokenize": "tokenizer", "schedule": "scheduler"}[name]
        if work.length and not work.has_group:
            yield f"{name}: {work.length} entries and no {reader} has ever read them", f"start a {reader}"
        elif work.unread and work.unread_s > UNREAD_S:
            yield (
                f"{name}: {work.unread} entries unread, the oldest for {work.unread_s:.0f} s",
                f"the {reader}s are too few, or hang",
            )
    tokenize, schedule = snapshot.work.get("tokenize"), snapshot.work.get("schedule")
    if tokenize is not None and tokenize.pending and tokenize.idle_s > 2 * UNREAD_S:
        yield (
            f"tokenize: {tokenize.pending} entries read and not finished, the oldest for {tokenize.idle_s:.0f} s",
            "a tokenizer hangs, and no other is there to take over; see their logs",
        )
    if schedule is not None and schedule.pending and snapshot.ledger is not None and not snapshot.ledger.sequences:
        yield (
            f"schedule: {schedule.pending} requests are pending and the scheduler knows of none",
            "restart the scheduler: it reads what is pending anew",
        )


def _logs(snapshot: Snapshot) -> Said:
    live = {one.instance for one in snapshot.instances if one.service == "gpu_worker"}
    for name, length in snapshot.lengths.items():
        kind, _, addressee = name.partition(":")
        if kind == "plan" and addressee not in live:
            if name in snapshot.unexpiring:
                yield (
                    f"{name}: plans for a worker that is not there",
                    f"it goes when the worker comes back; or delete {name}",
                )
        elif kind == "plan" and length > PLAN_LENGTH:
            yield f"{name}: {length} plans wait", "the worker does not read them: see its log"
        elif kind == "events" and length > LOG_LENGTH:
            yield f"events: {length} reports wait", "the scheduler does not keep up, or is gone"
    for name in snapshot.unexpiring:
        if name.startswith("reply:"):
            yield f"{name} would stay for ever", "its gateway died before it could say how long to keep it: delete it"


def _shards(snapshot: Snapshot) -> Said:
    live = {one.instance for one in _live(snapshot, "tokenizer")}
    for shard, owner in snapshot.owners.items():
        waiting = f"tokens:{shard} ({snapshot.lengths.get(f'tokens:{shard}', 0)} entries)"
        if owner is None:
            yield f"{waiting} is read by no tokenizer", "wait 3 s for the lease to be taken; else start a tokenizer"
        elif owner not in live:
            yield f"{waiting} is leased to {owner}, which is not heard of", "wait 3 s for the lease to lapse"


def _dead_letters(snapshot: Snapshot) -> Said:
    for letters in snapshot.dead:
        yield (
            f"{letters.stream}: {letters.count} dead letters, the last because: {letters.last_why}",
            f"look at them with XRANGE, then delete the key {letters.stream}",
        )


def _leader(snapshot: Snapshot) -> Said:
    schedulers = {one.instance for one in _live(snapshot, "scheduler")}
    if snapshot.leader is None:
        yield "no scheduler leads", "start one; if one runs, see its log"
    elif snapshot.leader not in schedulers:
        yield f"{snapshot.leader} leads and is not heard of", "wait 5 s for its lock to lapse; then another takes over"


def _ledger(snapshot: Snapshot) -> Said:
    ledger = snapshot.ledger
    if ledger is None:
        yield "the scheduler publishes no ledger", "it is not there, or hangs; see its log"
        return
    if snapshot.broker.now - ledger.at > LEDGER_AGE_S:
        yield f"the ledger is {snapshot.broker.now - ledger.at:.0f} s old", "the scheduler hangs; see its log"
    known = {worker.worker for worker in ledger.workers}
    for one in _live(snapshot, "gpu_worker"):
        if one.is_ready and one.instance not in known:
            yield f"the scheduler does not know worker {one.instance}", "it asks within 2 s; else restart the worker"
    for worker in ledger.workers:
        if worker.imbalance:
            yield (
                f"worker {worker.worker}: {worker.imbalance:+d} of {worker.pool} pages are in no place",
                "a bug in the scheduler: please report it with its log; restart the worker to get the pages back",
            )
        if worker.silent_s > HEARTBEAT_LAPSE_S:
            yield f"worker {worker.worker}: silent for {worker.silent_s:.0f} s", "it is given up soon; see its log"
