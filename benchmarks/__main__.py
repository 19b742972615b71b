"""Measure everything: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from benchmarks import (
    blocks,
    chart,
    crowd,
    growth,
    imports,
    latency,
    markers,
    throughput,
)
from benchmarks.report import Section, Table, load, machine
from benchmarks.settings import FULL, QUICK, Settings

MEASUREMENTS: Final[dict[str, Callable[[Settings], Section]]] = {
    "throughput": throughput.run,
    "growth": growth.run,
    "latency": latency.run,
    "crowd": crowd.run,
    "markers": markers.run,
    "blocks": blocks.run,
    "imports": imports.run,
}
#: The load from which on figures are worth little: clients and server need a core each.
BUSY: Final = 0.5
OUTPUT: Final = Path(__file__).parent / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the client and its peers; write tables, JSON and a chart.",
    )
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    parser.add_argument(
        "--only", action="append", choices=list(MEASUREMENTS), help="may be given more than once"
    )
    parser.add_argument("--events", type=int, help="events that each client drains")
    parser.add_argument("--repeat", type=int, help="how often each client is measured")
    parser.add_argument("--clients", type=int, help="clients that one process keeps open")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for what is written")
    parser.add_argument(
        "--install-peers",
        action="store_true",
        help="first install the clients in JavaScript to compare with, with npm",
    )
    return parser.parse_args(arguments)


def settings_for(arguments: argparse.Namespace) -> Settings:
    """Give what the command line asks for."""
    settings = QUICK if arguments.quick else FULL
    given = {
        name: getattr(arguments, name)
        for name in ("events", "repeat", "clients")
        if getattr(arguments, name) is not None
    }
    return replace(settings, **given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    settings = settings_for(options)
    if options.install_peers:
        throughput.install_peers()
    elif not throughput.has_peers():
        _note("without the clients in JavaScript; --install-peers installs them")
    if (load() or 0.0) > BUSY:
        _note(f"other programs are running (load {load()}): expect noise")
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": asdict(settings),
        "figures": {},
    }
    tables = [str(_origin(document))]
    print(f"\n{tables[0]}", flush=True)
    for name in options.only or MEASUREMENTS:
        section = _measure(name, settings)
        document["figures"][name] = section.figures
        for table in section.tables:
            print(f"\n{table}", flush=True)
            tables.append(str(table))
    document["load_at_the_end"] = load()
    _write(output, document, tables)


def _origin(document: dict[str, Any]) -> Table:
    """Say when and on what it is measured: figures without that say nothing."""
    machine = document["machine"]
    versions = [f"{name} {number}" for name, number in machine["versions"].items() if number]
    rows = [
        ["Day", document["started"].partition("T")[0]],
        ["Machine", f"{machine['cores']} cores, {machine['cpu']}"],
        ["Python", machine["python"]],
        ["Packages", ", ".join(versions)],
        ["Load before", str(machine["load"])],
    ]
    return Table("When and where", ["What", "Value"], rows)


def _measure(name: str, settings: Settings) -> Section:
    started = time.monotonic()
    _note(f"{name} ...")
    section = MEASUREMENTS[name](settings)
    _note(f"{name}: {time.monotonic() - started:.0f} s")
    return section


def _note(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def _write(output: Path, document: dict[str, Any], tables: list[str]) -> None:
    (output / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (output / "tables.rst").write_text("\n".join(tables), encoding="utf-8")
    if "throughput" in document["figures"]:
        picture = chart.draw(document["figures"]["throughput"])
        (output / "throughput.svg").write_text(picture, encoding="utf-8")
    _note("the tables, results.json and the chart are written")


if __name__ == "__main__":
    main()
