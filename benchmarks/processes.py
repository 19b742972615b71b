"""Fresh processes that measure something and say what in one line of JSON."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).parents[1]
#: Seconds after which a process that measures is taken for stuck.
PATIENCE: Final = 600


def measure(*command: str, environment: dict[str, str] | None = None) -> Any:
    """Run *command* and give what it says.

    :param command: a program with its arguments
    :param environment: variables to set beyond the present ones
    :return: the last line of its output, parsed
    :raises RuntimeError: if it fails
    """
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def measure_python(module: str, *arguments: object) -> Any:
    """Run a module of this package in a process of its own and give what it says."""
    return measure(sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments))


def say(**figures: object) -> None:
    """Tell the parent process what was measured."""
    print(json.dumps(figures), flush=True)


def resident() -> int:
    """Give the bytes of memory that this process has, garbage collected."""
    gc.collect()
    rss: int = psutil.Process().memory_info().rss
    return rss


class Stopwatch:
    """Seconds and seconds of CPU since it was started."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start from zero."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Give both."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def allow_many_files() -> None:
    """Allow this process as many open sockets as the system lets it have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
