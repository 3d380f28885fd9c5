"""`sapwood serve` with more than one of a kind: ready means all of them, and a dead leader is no outage."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import redis

from services.launcher.leash import leashed
from services.launcher.process import child_environment
from shared.leadership import LOCK
from tests.ports import free_ports

READY_S = 120.0
KILLED_WITHIN_S = 10.0
BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "temperature": 0}


@contextlib.asynccontextmanager
async def serving(model: Path, port: int, *flags: str) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """The launcher, once it has said that it is ready; stopped afterwards, without a fault."""
    common = ["--model-path", str(model), "--served-model-name=tiny", f"--port={port}", "--threads=1", "--num-pages=64"]
    process = subprocess.Popen(  # noqa: ASYNC220  # on a leash: started from the main thread
        leashed([sys.executable, "-P", "-m", "services.launcher", "serve", *common, "--dtype=float32", *flags]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(),
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(READY_S):
            while not (said and said[-1].startswith("Sapwood is ready")):
                line = await asyncio.to_thread(process.stdout.readline)
                assert line, "".join(said)
                said.append(line.decode())
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0, rest.decode()


@pytest.mark.slow
async def test_all_gateways_answer_at_once_and_go_on_when_the_leader_dies(tiny_model: Path) -> None:
    (port,) = free_ports(1)
    no_keepalive = aiohttp.TCPConnector(force_close=True)
    async with (
        serving(tiny_model, port, "--gateways=3", "--schedulers=2") as launcher,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=no_keepalive) as http,
    ):

        async def ask() -> int:
            async with http.post("/v1/completions", json=BODY) as response:
                await response.read()
                return response.status

        assert {await ask() for _ in range(30)} == {200}, "each connection may be another gateway's"
        with contextlib.closing(redis.Redis.from_url(broker_url(launcher.pid))) as broker:
            before = broker.get(f"sapwood:{LOCK}")
            assert isinstance(before, bytes)
            os.kill(child(launcher.pid, before.decode().partition("/")[0]), signal.SIGKILL)
            killed_at = time.monotonic()
            while broker.get(f"sapwood:{LOCK}") in (before, None):
                assert time.monotonic() - killed_at < KILLED_WITHIN_S
                await asyncio.sleep(0.02)
        assert {await ask() for _ in range(10)} == {200}


def child(launcher: int, instance: str) -> int:
    """The process id of one of the launcher's."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"--instance={instance}" in (entry / "cmdline").read_text().split("\0"):
                return int(entry.name)
    raise AssertionError(f"no {instance}")


def broker_url(launcher: int) -> str:
    """The embedded broker's, as children are told it."""
    environment = Path(f"/proc/{child(launcher, 'gateway-0')}/environ").read_text().split("\0")
    return next(one.partition("=")[2] for one in environment if one.startswith("SAPWOOD_REDIS_URL="))
