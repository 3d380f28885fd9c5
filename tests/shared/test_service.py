"""How a process ends: what it fails at on the way out shows in its exit code."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.service import Context, run_service
from shared.settings import BaseSettings
from tests.brokers import Server, eventually
from tests.ports import free_port


async def stops_well(context: Context, settings: BaseSettings) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()


async def fails_to_stop(context: Context, settings: BaseSettings) -> None:
    try:
        await stops_well(context, settings)
    finally:
        raise RuntimeError("no way out")


def run(serve: Callable[..., object], url: str, prefix: str) -> None:
    run_service("test", BaseSettings, serve, ["--redis-url", url, "--key-prefix", prefix])  # type: ignore[arg-type]


def test_a_signal_ends_a_process_well(broker_url: str) -> None:
    run(stops_well, broker_url, "service-well")


def test_what_fails_while_a_process_stops_is_no_clean_end(broker_url: str) -> None:
    with pytest.raises(RuntimeError, match="no way out"):
        run(fails_to_stop, broker_url, "service-ill")


def test_a_broker_that_takes_no_writes_yet_is_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", free_port(), {"min-replicas-to-write": "1"})
    server.start()
    try:
        with contextlib.closing(server.client()) as client:
            eventually(client.ping)
            allow = threading.Timer(0.5, client.config_set, ["min-replicas-to-write", 0])
            allow.start()
            run(stops_well, f"redis://127.0.0.1:{server.port}/0", "service-late")
            assert not allow.is_alive()
    finally:
        server.stop()
