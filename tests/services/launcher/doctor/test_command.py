"""`sapwood doctor` over a real broker."""

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import msgspec
import pytest

from services.launcher.doctor.command import find_broker
from services.launcher.doctor.diagnosis import findings
from services.launcher.doctor.snapshot import look
from services.launcher.main import main
from shared.errors import ConfigError
from shared.ledger import LEDGER_KEY, Ledger
from shared.messages import Abort, Deltas, Plan
from shared.registry import Registry
from shared.streams import SCHEDULE, TOKENIZE, Bus, plan_stream, reply_stream


async def a_sick_set(bus: Bus) -> None:
    """A scheduler that has read one of two messages, a reply stream without an end, a dead letter."""
    scheduler = Registry(bus, "scheduler", "s-0")
    scheduler.update(is_ready=True)
    await scheduler.beat()
    await bus.client.set(bus.key("scheduler-leader"), "s-0/abc")
    ledger = Ledger(scheduler="s-0", at=time.time(), term=1, sequences=3, unplaced=3, workers=[])
    await bus.client.set(bus.key(LEDGER_KEY), msgspec.json.encode(ledger))
    await bus.client.set(bus.key("token_shards"), 2)
    await bus.client.set(bus.key("shard:0:owner"), "t-0")
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[1]))
    await bus.outbox.flush()
    async for _ in bus.groups.read(SCHEDULE, "scheduler"):
        break
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[2]))
    bus.outbox.post(reply_stream("g-0"), Deltas())
    bus.outbox.bury(TOKENIZE, "1-0", {b"m": b"x"}, "no message")
    await bus.outbox.flush()


async def test_what_the_broker_shows(bus: Bus) -> None:
    await a_sick_set(bus)
    seen = await look(bus)
    work = seen.work["schedule"]
    assert (work.length, work.unread, work.pending, work.has_group) == (2, 1, 1, True)
    assert 0 <= work.unread_s < 5
    assert 0 <= work.idle_s < 5
    assert seen.work["tokenize"].length == 0
    assert [(one.stream, one.count, one.last_why) for one in seen.dead] == [("tokenize.dead", 1, "no message")]
    assert seen.unexpiring == ["reply:g-0"]
    assert seen.owners == {0: "t-0", 1: None}
    assert seen.leader == "s-0"
    assert seen.ledger is not None and seen.ledger.sequences == 3
    assert [one.instance for one in seen.instances] == ["s-0"]
    assert plan_stream("w").name not in seen.lengths


async def test_plans_that_go_away_by_themselves_are_no_fault(bus: Bus) -> None:
    for worker in ("w-0", "w-1"):
        bus.outbox.post(plan_stream(worker), Plan(epoch=1, number=1, commands=[]))
    bus.outbox.expire(plan_stream("w-1"), 60)
    await bus.outbox.flush()
    seen = await look(bus)
    assert seen.unexpiring == ["plan:w-0"]
    told = [finding.what for finding in findings(seen)]
    assert "plan:w-0: plans for a worker that is not there" in told and not any("w-1" in one for one in told)


async def test_faults_are_told_and_the_exit_code_says_so(
    bus: Bus, broker_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    await a_sick_set(bus)
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, ["doctor", "--redis-url", broker_url, "--key-prefix", bus.prefix])
    assert ended.value.code == 1
    said = capfd.readouterr().out
    for fault in ("there is no gateway", "tokenize.dead: 1 dead letters", "reply:g-0 would stay", "things are wrong"):
        assert fault in said
    assert "scheduler  s-0: ready" in said


def test_a_broker_that_does_not_answer_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--redis-url", "redis://127.0.0.1:1/0"])
    assert ended.value.code == 1
    assert capfd.readouterr().err.startswith("sapwood: the broker does not answer")


def test_the_only_embedded_broker_is_found(tmp_path: Path) -> None:
    assert find_broker(tmp_path) == "redis://127.0.0.1:6379/0"
    paths = [tmp_path / f"sapwood-{name}" / "broker.sock" for name in "abc"]
    with contextlib.ExitStack() as sockets:
        for number, path in enumerate(paths):
            path.parent.mkdir()
            server = sockets.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(path))
            if number:  # the first one's set was killed
                server.listen()
                if number == 1:
                    assert find_broker(tmp_path) == f"unix://{path}"
        with pytest.raises(ConfigError, match="several sets run here"):
            find_broker(tmp_path)
