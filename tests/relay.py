"""A network between a process and the broker: it can be cut, hold back what is sent, or speak TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """Passes bytes on between those who connect to it and a target. listen: starts a server whose connections are
    handed to the function it is given; reach: connects to the target."""

    def __init__(
        self, listen: Callable[[Connected], Awaitable[asyncio.Server]], reach: Callable[[], Awaitable[Streams]]
    ) -> None:
        self._listen = listen
        self._reach = reach
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await self._listen(self._accept)

    def cut(self) -> None:
        """Closes every connection in the middle of whatever it carries; new ones are taken at once."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Holds every byte back until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            answers, there = await self._reach()
            self._writers.add(there)
            ways = [
                asyncio.ensure_future(self._pass(reader, there)),
                asyncio.ensure_future(self._pass(answers, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the broker is away: who connected sees the connection close
        finally:
            for end in (writer, there):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()


def between_sockets(path: Path, target: Path) -> Relay:
    """A relay from one Unix socket to another."""
    return Relay(lambda accept: asyncio.start_unix_server(accept, path), lambda: asyncio.open_unix_connection(target))


def with_tls(port: int, target: int, context: ssl.SSLContext) -> Relay:
    """A relay that speaks TLS on a port of the loopback, to another port that does not."""
    return Relay(
        lambda accept: asyncio.start_server(accept, "127.0.0.1", port, ssl=context),
        lambda: asyncio.open_connection("127.0.0.1", target),
    )
