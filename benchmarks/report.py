"""Figures as people and programs read them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Final

_PACKAGES: Final = ("aiosfstream", "aiohttp", "aiocometd", "orjson", "redis")


@dataclass(frozen=True)
class Table:
    """A table.

    :ivar title: what it shows
    :ivar columns: the headings
    :ivar rows: the cells, as text
    :ivar note: what one must know to read it
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        """Give it as reStructuredText, which is easy to read on a terminal, too."""
        columns, *rows = map(self._with_ranges, [self.columns, *self.rows])
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        rule = "  ".join("=" * width for width in widths)
        lines = [self.title, "-" * len(self.title), ""]
        lines += [rule, _line(columns, widths), rule]
        lines += [_line(row, widths) for row in rows]
        lines += [rule, ""]
        if self.note:
            lines += [self.note, ""]
        return "\n".join(lines)

    def _with_ranges(self, row: Sequence[str]) -> list[str]:
        """Put each range beside its figure: fewer columns fit on a page."""
        cells: list[str] = []
        for heading, cell in zip(self.columns, row, strict=True):
            if heading != "range":
                cells.append(cell)
            elif cell:
                cells[-1] += f" ({cell})"
        return cells


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    # The first column names the row, the others hold figures.
    return "  ".join(
        [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    ).rstrip()


@dataclass(frozen=True)
class Section:
    """What one measurement gave.

    :ivar tables: for people
    :ivar figures: for programs: everything that was measured, not only the medians
    """

    tables: Sequence[Table]
    figures: dict[str, Any]


@dataclass
class Series:
    """One figure, measured several times."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median."""
        return median(self.values)

    def over(self, other: Series) -> float:
        """Give the median of the ratios to *other*, measured in the same rounds.

        What slows the machine down for a while slows both of a round.
        """
        return median(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))

    def text(self, digits: int = 0, scale: float = 1.0) -> str:
        """Give the median as text."""
        return f"{self.median * scale:,.{digits}f}"

    def range(self, digits: int = 0, scale: float = 1.0) -> str:
        """Give the least and the greatest as text."""
        low, high = min(self.values) * scale, max(self.values) * scale
        return f"{low:,.{digits}f} - {high:,.{digits}f}"


def machine() -> dict[str, Any]:
    """Describe the machine, as far as it matters to the figures."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load": load(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def load() -> float | None:
    """Give the number of programs that have lately wanted a core; None where it is not known."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
