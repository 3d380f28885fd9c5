"""Children: started, watched, restarted, stopped in order, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.launcher import supervisor as supervisor_module
from services.launcher.plan import ProcessPlan
from services.launcher.process import Child
from services.launcher.supervisor import Supervisor
from shared.errors import ConfigError

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


def script(name: str, code: str, *arguments: str) -> ProcessPlan:
    return ProcessPlan(name, "gpu_worker", [sys.executable, "-I", "-S", "-c", code, *arguments])


class Screen:
    """Remembers what would be shown."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.notices: list[str] = []

    def on_line(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def child(self, plan: ProcessPlan) -> Child:
        return Child(plan, self.on_line)


@asynccontextmanager
async def supervised(screen: Screen) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(screen.notices.append)
    try:
        yield supervisor
    finally:
        supervisor.kill()
        await supervisor.stop()


async def eventually(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_output_arrives_line_by_line_with_its_name() -> None:
    screen = Screen()
    async with supervised(screen) as supervisor:
        child = screen.child(script("w-0", "print('one'); print('two')"))
        await supervisor.start([child], grace_s=1)
        await child.wait()
    assert screen.lines == [("w-0", "one"), ("w-0", "two")]


async def test_a_line_without_end_does_not_stop_the_reading() -> None:
    screen = Screen()
    async with supervised(screen) as supervisor:
        child = screen.child(script("w-0", "print('x' * 5_000_000); print('after')"))
        await supervisor.start([child], grace_s=1)
        await child.wait()
    assert screen.lines[-1] == ("w-0", "after")


async def test_the_first_end_before_ready_is_an_error_with_its_reason() -> None:
    screen = Screen()
    async with supervised(screen) as supervisor:
        broken = script("w-1", "import sys; sys.exit('gpu_worker: the model is too big')")
        await supervisor.start([screen.child(script("w-0", SLEEPER)), screen.child(broken)], grace_s=1)
        with pytest.raises(ConfigError, match=r"^w-1 did not start: the model is too big$"):
            await asyncio.wait_for(supervisor.first_end(), 10)


async def test_a_command_that_is_not_there_is_an_error_with_its_name() -> None:
    screen = Screen()
    async with supervised(screen) as supervisor:
        await supervisor.start([screen.child(ProcessPlan("broker", "broker", ["/no/such/valkey"]))], grace_s=1)
        with pytest.raises(ConfigError, match="cannot run /no/such/valkey: No such file"):
            await asyncio.wait_for(supervisor.first_end(), 10)


async def test_a_child_that_ends_later_is_started_again_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTART_FIRST_S", 0.05)
    screen = Screen()
    async with supervised(screen) as supervisor:
        child = screen.child(script("w-0", "import os; print(os.getpid(), flush=True); os._exit(7)"))
        await supervisor.start([child], grace_s=1)
        keeping = asyncio.create_task(supervisor.keep_running())
        await eventually(lambda: len({line for _, line in screen.lines}) >= 3)
        keeping.cancel()
        await asyncio.wait([keeping])
    delays = [notice.rpartition(" in ")[2] for notice in screen.notices[:2]]
    assert delays == ["0.05 s", "0.1 s"]
    assert all(notice.startswith("w-0 ended (exit code 7") for notice in screen.notices)


async def test_the_end_of_a_child_is_told_before_it_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTART_FIRST_S", 0.05)
    screen = Screen()
    told: list[tuple[str, bool]] = []

    async def tell(child: Child) -> None:
        told.append((child.name, child.is_running))

    supervisor = Supervisor(screen.notices.append, tell)
    try:
        await supervisor.start([screen.child(script("w-0", "print('up', flush=True)"))], grace_s=1)
        keeping = asyncio.create_task(supervisor.keep_running())
        await eventually(lambda: len(screen.lines) >= 2)
        keeping.cancel()
        await asyncio.wait([keeping])
    finally:
        await supervisor.stop()
    assert told[0] == ("w-0", False)


async def test_a_child_that_does_not_stay_up_is_given_up_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(supervisor_module, "RESTART_LONGEST_S", 0.02)
    screen = Screen()
    async with supervised(screen) as supervisor:
        broken = script("w-0", "import sys; sys.exit('gpu_worker: no such device')")
        await supervisor.start([screen.child(script("w-1", SLEEPER)), screen.child(broken)], grace_s=1)
        with pytest.raises(ConfigError, match=r"^w-0 ended 8 times in a row .* at last with: no such device$"):
            await asyncio.wait_for(supervisor.keep_running(), 30)
    assert len(screen.notices) == 7


async def test_groups_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.2)\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n" + SLEEPER
    )
    screen = Screen()
    async with supervised(screen) as supervisor:
        for name in ("broker", "worker", "gateway"):
            await supervisor.start([screen.child(script(name, code, str(log), name))], grace_s=5)
        await eventually(lambda: len(screen.lines) == 3)
        await supervisor.stop()
    assert log.read_text().split() == ["gateway", "worker", "broker"]


async def test_a_child_that_ignores_sigterm_is_killed_after_its_time() -> None:
    screen = Screen()
    async with supervised(screen) as supervisor:
        child = screen.child(script("w-0", STUBBORN))
        await supervisor.start([child], grace_s=0.3)
        await eventually(lambda: bool(screen.lines))
        began = time.monotonic()
        await supervisor.stop()
        assert 0.3 <= time.monotonic() - began < 3
        assert not child.is_running


async def test_what_a_child_started_goes_with_it() -> None:
    screen = Screen()
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).pid, flush=True)"
    async with supervised(screen) as supervisor:
        await supervisor.start([screen.child(script("w-0", f"{code}; {SLEEPER}"))], grace_s=1)
        await eventually(lambda: len(screen.lines) >= 3)
        grandchild = next(int(line) for _, line in screen.lines if line.isdigit())
        await supervisor.stop()
    await eventually(lambda: not is_alive(grandchild), 2)


def test_children_die_with_a_launcher_that_is_killed() -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", KILLED_LAUNCHER, STUBBORN], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert launcher.stdout is not None
    with launcher, launcher.stdout:
        child = int(launcher.stdout.readline())
        assert is_alive(child)
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait(5)
        deadline = time.monotonic() + 5
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(child)


KILLED_LAUNCHER = """
import asyncio, sys
from services.launcher.plan import ProcessPlan
from services.launcher.process import Child

async def main():
    child = Child(ProcessPlan("w", "w", [sys.executable, "-c", sys.argv[1]]), lambda name, line: up.set())
    up = asyncio.Event()
    await child.start()
    await up.wait()
    print(child._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
