"""Traces on request: where they may go, and that the running worker makes them."""

import asyncio
import json
from pathlib import Path

import pytest
from msgspec import structs

from services.gpu_worker.control import follow_control, trace_file
from services.gpu_worker.profiler import Profiler
from shared.messages import Profile
from shared.streams import Bus, control_stream
from tests.services.gpu_worker.fake_runner import FakeRunner, expected_outputs
from tests.services.gpu_worker.test_main import SETTINGS, WORKER, a_worker, an_admit

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")  # the profiler's own


def test_a_trace_has_the_workers_name_and_stays_below_the_folder_of_the_settings(tmp_path: Path) -> None:
    default = tmp_path / "trace.json"
    (tmp_path / "deep").mkdir()
    assert trace_file("", default, "w1") == tmp_path / "trace-w1.json"
    assert trace_file("a.b.json", default, "w1") == tmp_path / "a.b-w1.json"
    assert trace_file("deep/t.json", default, "w/../2") == tmp_path / "deep" / "t-w_.._2.json"


@pytest.mark.parametrize(
    "path",
    ["/etc/t.json", "../t.json", "a/../t.json", "..json", ".t.json", "t.txt", "t.json\n", "a//t.json", "a\0.json"],
)
def test_paths_that_lead_elsewhere_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no path of a"):
        trace_file(path, tmp_path / "trace.json", "w1")


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        trace_file("link/t.json", tmp_path / "folder" / "trace.json", "w1")


async def test_what_cannot_be_traced_is_said_and_the_next_is_obeyed(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream, profiler = control_stream(WORKER), Profiler()
    await bus.add(stream, Profile(steps=1, path="before.json"))
    since = await bus.newest_id(stream)
    task = asyncio.create_task(follow_control(bus, WORKER, since, profiler, tmp_path / "trace.json"))
    try:
        await bus.client.xadd(bus.key(stream.name), {"v": 1, "m": b"\x00 nonsense"})
        for path in ("../out.json", "nowhere/t.json", "good.json", "late.json"):
            await bus.add(stream, Profile(steps=5, path=path))
        for _ in range(100):
            await asyncio.sleep(0.02)
            if "traced already" in caplog.text and await bus.client.xlen(bus.key(stream.name)) == 1:
                break
        else:
            raise AssertionError(caplog.text)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert "before" not in caplog.text
    assert "no path of a .json file" in caplog.text and "no such folder" in caplog.text
    assert f"tracing the next 5 steps to {tmp_path}/good-{WORKER}.json" in caplog.text
    assert "dead letter" in caplog.text


async def test_a_running_worker_traces_its_steps_while_it_goes_on(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = structs.replace(SETTINGS, profile_file=str(tmp_path / "trace.json"))
    async with a_worker(bus, FakeRunner(), settings) as scheduler:
        for name, number in (("one", 1), ("two", 2)):
            bus.outbox.post(control_stream(WORKER), Profile(steps=4, path=f"{name}.json"))
            await bus.outbox.flush()
            for _ in range(1000):
                await asyncio.sleep(0.02)
                if f"tracing the next 4 steps to {tmp_path}/{name}-" in caplog.text:
                    break
            scheduler.plan(an_admit(number, [1, 2, number], range(10), 20))
            await scheduler.until(lambda number=number: scheduler.ended(number), patience_s=60)  # type: ignore[misc]
            assert scheduler.tokens(number) == expected_outputs([1, 2, number], 20)
            events = json.loads((tmp_path / f"{name}-{WORKER}.json").read_text())["traceEvents"]
            assert any(event.get("cat") == "cpu_op" for event in events)
