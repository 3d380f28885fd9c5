"""The health check of a container."""

import asyncio
import os
import socket
import sys

import pytest

from shared import health
from shared.messages import HEARTBEAT_LAPSE_S, Instance
from shared.registry import Registry
from shared.streams import Bus

NOW = 1000.0


def instance(*, service: str = "tokenizer", host: str = "here", is_ready: bool = True, age_s: float = 1) -> Instance:
    return Instance(service=service, instance="i", host=host, pid=1, started_at=0, at=NOW - age_s, is_ready=is_ready)


@pytest.mark.parametrize(
    ("instances", "why"),
    [
        ([], "no tokenizer of host here in the registry"),
        ([instance(host="elsewhere"), instance(service="scheduler")], "no tokenizer of host here in the registry"),
        ([instance(is_ready=False)], "tokenizer is starting"),
        ([instance(age_s=HEARTBEAT_LAPSE_S + 2)], "tokenizer was last heard of 7 s ago"),
        ([instance(age_s=HEARTBEAT_LAPSE_S + 2), instance()], None),
    ],
    ids=["nobody", "others", "starting", "silent", "restarted"],
)
def test_the_fault_is_named(instances: list[Instance], why: str | None) -> None:
    assert health.fault(instances, "tokenizer", "here", NOW) == why


def test_a_scheduler_that_waits_for_its_turn_is_well() -> None:
    waits = instance(service="scheduler", is_ready=False)
    assert health.fault([waits], "scheduler", "here", NOW) == "scheduler is starting"
    assert health.fault([waits, instance(service="scheduler", host="elsewhere")], "scheduler", "here", NOW) is None


async def run_check(service: str, broker_url: str, prefix: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shared.health",
        service,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SAPWOOD_REDIS_URL": broker_url, "SAPWOOD_KEY_PREFIX": prefix},
    )
    _, output = await process.communicate()
    return process.returncode, output.decode().strip()


async def test_a_ready_process_of_this_host_is_healthy(bus: Bus, broker_url: str) -> None:
    registry = Registry(bus, "tokenizer", "tokenizer-1")
    registry.update(is_ready=True)
    await registry.beat()
    assert await run_check("tokenizer", broker_url, bus.prefix) == (0, "")
    returncode, why = await run_check("scheduler", broker_url, bus.prefix)
    assert (returncode, why) == (1, f"no scheduler of host {socket.gethostname()} in the registry")


async def test_a_broker_that_is_gone_is_a_fault() -> None:
    returncode, why = await run_check("tokenizer", "unix:///no/such/socket", "p")
    assert returncode == 1
    assert why.startswith("ConnectionError")
    assert len(why.splitlines()) == 1
