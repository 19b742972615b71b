"""A real PostgreSQL server for a test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.redis_server import free_port

#: Seconds for a server to start.
PATIENCE = 30
#: The account that runs it where the tests run as root, which PostgreSQL refuses.
ACCOUNT = "postgres"


def programs() -> Path:
    """Return the folder of PostgreSQL's programs: on Debian it is not in the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "postgres").exists():
            return folder
    raise AssertionError("PostgreSQL is missing: install it (apt-get install postgresql)")


class PostgresServer:
    """A server of its own, whose data is gone at the end."""

    def __init__(self) -> None:
        self._programs = programs()
        self._account = ACCOUNT if os.geteuid() == 0 else None
        self._temporary = tempfile.TemporaryDirectory(
            prefix="postgres-", ignore_cleanup_errors=True
        )
        self._folder = Path(self._temporary.name)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        #: For SQLAlchemy with asyncpg.
        self.url = f"postgresql+asyncpg://tests@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> PostgresServer:
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        data = self._folder / "data"
        self._run("initdb", "--no-sync", "--auth=trust", "--username=tests", f"--pgdata={data}")
        options = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
        }
        arguments = [text for name, value in options.items() for text in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._account,
                cwd=self._folder,
            )
        self._wait_until_ready()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        assert self._process is not None
        # "Immediate shutdown": without waiting for clients.
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(PATIENCE)
        self._temporary.cleanup()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            user=self._account,
            cwd=self._folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        address = ["--host=127.0.0.1", f"--port={self.port}", "--quiet"]
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "log").read_text("utf-8")
            ready = subprocess.run([self._programs / "pg_isready", *address], check=False)
            if ready.returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError("PostgreSQL does not answer")
