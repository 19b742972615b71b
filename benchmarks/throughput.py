"""Draining a backlog: how many events a second a client takes on one core, beside its peers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import measure, measure_python
from benchmarks.report import Section, Series, Table
from benchmarks.script import CHANNEL
from benchmarks.server import Script, ServerProcess
from benchmarks.settings import Settings

PEERS: Final = Path(__file__).parent / "peers"
BASE: Final = "bare"
PYTHON: Final = {
    BASE: "bare loop: aiohttp and json",
    "bare-orjson": "bare loop: aiohttp and orjson",
    "dict": "aiosfstream, markers in a dict",
    "orjson": "aiosfstream, dict, orjson",
    "constant": "aiosfstream, no markers",
    "sqlite": "aiosfstream, SQLiteStorage",
    "written": "aiosfstream, a storage of one's own",
    "receive": "aiosfstream, dict, await receive()",
}
JAVASCRIPT: Final = {
    "cometd_client.mjs": "cometd 9 (JavaScript)",
    "faye_client.cjs": "faye 1.4 (JavaScript)",
}
#: The server without a client: an answer is read and thrown away.
SERVER: Final = "socket"
_COLUMNS: Final = ("client", "events/s", "range", "to bare", "CPU us/event", "to bare, CPU")


def has_peers() -> bool:
    """Say whether the clients in JavaScript are installed."""
    return shutil.which("node") is not None and (PEERS / "node_modules").is_dir()


def install_peers() -> None:
    """Install the clients in JavaScript, as their lock file says."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("the clients in JavaScript need Node.js with npm")
    subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=PEERS, check=True)


def run(settings: Settings) -> Section:
    """Let every client drain the same events, for each size of a response."""
    tables, figures = [], {}
    for batch in settings.batches:
        series = _measure(settings, batch)
        tables.append(_table(settings, batch, series))
        figures[str(batch)] = {
            name: {"wall": wall.values, "cpu": cpu.values} for name, (wall, cpu) in series.items()
        }
    return Section(tables, {"events": settings.events, "seconds": figures, "labels": labels()})


def labels() -> dict[str, str]:
    """Give the clients that can be measured here, with what to call them."""
    return {**PYTHON, **(JAVASCRIPT if has_peers() else {}), SERVER: "the server itself"}


def _measure(settings: Settings, batch: int) -> dict[str, tuple[Series, Series]]:
    names = list(labels())
    series = {name: (Series(), Series()) for name in names}
    with ServerProcess(Script(events=settings.events, batch=batch)) as server:
        for turn in range(settings.repeat):
            # Each turn begins with another client, so that none has the same neighbours every time.
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                figures = _measure_client(name, server.url, settings.events)
                wall, cpu = series[name]
                wall.values.append(figures["wall"])
                cpu.values.append(figures["cpu"])
    return series


def _measure_client(name: str, url: str, events: int) -> Any:
    if name in JAVASCRIPT:
        return measure("node", str(PEERS / name), url, CHANNEL, str(events))
    return measure_python("drain", name, url, events)


def _table(settings: Settings, batch: int, series: dict[str, tuple[Series, Series]]) -> Table:
    base_wall, base_cpu = series[BASE]
    rows = []
    for name, label in labels().items():
        wall, cpu = series[name]
        rate = Series([settings.events / seconds for seconds in wall.values])
        rows.append(
            (
                label,
                rate.text(),
                rate.range(),
                f"{base_wall.over(wall):.2f}",
                cpu.text(2, 1e6 / settings.events),
                f"{base_cpu.over(cpu):.2f}",
            )
        )
    return Table(
        f"Draining {settings.events:,} events, {batch} to a response",
        _COLUMNS,
        rows,
        f"Medians of {settings.repeat}. A ratio above 1 is faster than the bare loop.",
    )
