"""A proxy that tunnels TLS, and remembers where to."""

from __future__ import annotations

import asyncio


class Proxy:
    """An HTTP proxy on this machine."""

    def __init__(self) -> None:
        #: The hosts and ports that it was asked for.
        self.targets: list[str] = []
        #: The ``Proxy-Authorization`` headers that it was given.
        self.authorizations: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            _, target, _ = head.split(" ", 2)
            self.targets.append(target)
            self.authorizations += [
                line.partition(": ")[2]
                for line in head.splitlines()
                if line.lower().startswith("proxy-authorization")
            ]
            host, _, port = target.rpartition(":")
            answers, upstream = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, upstream), _pump(answers, writer))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            for stream in filter(None, (upstream, writer)):
                stream.transport.abort()
            self._tasks.discard(task)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()
