"""A real Redis server for a test, which can be killed and started again on the same port."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

#: Seconds for a server to start.
PATIENCE = 20
#: Nodes of a cluster talk to one another on a port that is 10,000 higher.
HIGHEST_PORT = 65_535 - 10_000


def free_port() -> int:
    """Return a port that nobody listens on, and that a node of a cluster can have."""
    with ExitStack() as listeners:
        while True:
            listener = listeners.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            if port <= HIGHEST_PORT:
                return port


class RedisServer:
    """A redis-server that writes every command to the disk before it answers."""

    def __init__(self, folder: Path, *, cluster: bool = False) -> None:
        program = shutil.which("redis-server")
        assert program is not None, (
            "redis-server is missing: install it (apt-get install redis-server)"
        )
        self._program = program
        self._folder = folder
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, with the data that the last one left."""
        options: dict[str, Any] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "daemonize": "no",
            "cluster-enabled": "yes" if self._cluster else "no",
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *arguments], stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Kill it without a chance to save anything."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)

    def pause(self) -> None:
        """Let it hang, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "redis.log").read_text("utf-8")
            if self._answers():
                return
            time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
