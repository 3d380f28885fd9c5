"""The command line of `sapwood doctor`."""

import argparse
import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from services.launcher.doctor.diagnosis import findings
from services.launcher.doctor.snapshot import Snapshot, look
from services.launcher.screen import Screen
from shared.errors import ConfigError
from shared.registry import stands_by
from shared.streams import Bus, connect, wait_for_broker

PATIENCE_S = 3.0
LOOK_S = 20.0
DEFAULT_URL = "redis://127.0.0.1:6379/0"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redis-url",
        default=os.environ.get("SAPWOOD_REDIS_URL"),
        help="the set's broker, or SAPWOOD_REDIS_URL; default: that of the `sapwood serve` that runs on this machine",
    )
    parser.add_argument("--key-prefix", default=os.environ.get("SAPWOOD_KEY_PREFIX", "sapwood"))


def run(arguments: argparse.Namespace, screen: Screen) -> bool:
    """Whether all is well. Raises ConfigError or BusError when nothing can be seen."""
    url = arguments.redis_url or find_broker()
    snapshot = asyncio.run(_look(url, arguments.key_prefix))
    for line in described(snapshot):
        screen.say(line)
    found = findings(snapshot)
    for finding in found:
        screen.say(f"\n! {finding.what}", style="bold red")
        screen.say(f"  {finding.advice}")
    screen.say(
        f"\n{len(found)} things are wrong" if len(found) > 1 else "\n1 thing is wrong" if found else "\nall is well"
    )
    return not found


async def _look(url: str, prefix: str) -> Snapshot:
    client = connect(url)
    try:
        await wait_for_broker(client, patience_s=PATIENCE_S)
        async with asyncio.timeout(LOOK_S):
            return await look(Bus(client, prefix))
    except TimeoutError:
        raise ConfigError(f"the broker did not tell all in {LOOK_S:g} s") from None
    finally:
        await client.aclose()


def _is_served(path: Path) -> bool:
    """Whether somebody listens there: a set that was killed leaves its socket behind."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        return client.connect_ex(str(path)) == 0


def find_broker(folder: Path | None = None) -> str:
    """The embedded broker of this machine's only `sapwood serve`, else Redis where it usually is. Raises ConfigError
    when there are several."""
    folders = {folder} if folder else {Path(tempfile.gettempdir()), Path("/tmp")}
    found = (path for one in folders for path in one.glob("sapwood-*/broker.sock"))
    sockets = sorted(str(path) for path in found if _is_served(path))
    if len(sockets) > 1:
        raise ConfigError(f"several sets run here; name one: --redis-url unix://{' or unix://'.join(sockets)}")
    return f"unix://{sockets[0]}" if sockets else DEFAULT_URL


def described(snapshot: Snapshot) -> Iterator[str]:
    """The set as it is, in lines."""
    broker = snapshot.broker
    limit = f" of {broker.max_memory >> 20}" if broker.max_memory else ""
    kept = "append-only file" if broker.keeps else "nothing is kept on disk"
    yield f"broker     {broker.version}, {broker.memory >> 20}{limit} MiB, {kept}"
    for one in snapshot.instances:
        waits = "stands by" if stands_by(one, snapshot.instances, broker.now) else "not ready"
        state = "ready" if one.is_ready else waits
        up = time.strftime("%H:%M:%S", time.gmtime(max(0.0, broker.now - one.started_at)))
        heard = max(0.0, broker.now - one.at)
        yield f"{one.service:10} {one.instance}: {state}, up {up}, heard of {heard:.1f} s ago, {one.host} pid {one.pid}"
    for name, work in snapshot.work.items():
        yield f"{name:10} {work.unread} unread, {work.pending} in work"
    for shard, owner in snapshot.owners.items():
        yield f"tokens:{shard:<3} {snapshot.lengths[f'tokens:{shard}']} entries, read by {owner or 'nobody'}"
    if snapshot.ledger is not None:
        yield f"sequences  {snapshot.ledger.sequences}, {snapshot.ledger.unplaced} of them without a worker"
        for worker in snapshot.ledger.workers:
            yield (
                f"pages      {worker.worker} (epoch {worker.epoch}): {worker.pool} = {worker.free} free + "
                f"{worker.cached} cached + {worker.locked} shared + {worker.private} private; "
                f"{worker.running} running, {worker.waiting} waiting"
            )
