"""How long it takes to import the package, beside what it is built on."""

from __future__ import annotations

import sys
import tempfile
from typing import Any, Final

from benchmarks.processes import measure
from benchmarks.report import Section, Series, Table
from benchmarks.settings import Settings

_TIMED: Final = """
import json, time
started = time.perf_counter()
import {first}
between = time.perf_counter()
import {then}
print(json.dumps([between - started, time.perf_counter() - between]))
"""
_DEPENDENCIES: Final = "aiohttp, aiocometd"


def run(settings: Settings) -> Section:
    """Time imports in fresh processes."""
    dependencies, beyond = Series(), Series()
    program = _TIMED.format(first=_DEPENDENCIES, then="aiosfstream")
    with tempfile.TemporaryDirectory() as folder:
        # Compiled files must be there, as they are in an installed package.
        environment = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        _import(program, environment)
        for _ in range(settings.imports):
            before, after = _import(program, environment)
            dependencies.values.append(before)
            beyond.values.append(after)
    rows = [
        (label, series.text(1, 1000), series.range(1, 1000))
        for label, series in (
            ("aiohttp and aiocometd", dependencies),
            ("aiosfstream, beyond these", beyond),
        )
    ]
    note = f"Medians of {settings.imports} fresh processes."
    return Section(
        [Table("Importing", ("import", "ms", "range"), rows, note)],
        {"dependencies": dependencies.values, "beyond": beyond.values},
    )


def _import(program: str, environment: dict[str, str]) -> Any:
    return measure(sys.executable, "-c", program, environment=environment)
