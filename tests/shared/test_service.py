"""How a process ends: what it fails at on the way out shows in its exit code."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from shared.service import Context, run_service
from shared.settings import BaseSettings


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
