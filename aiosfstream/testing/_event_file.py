"""The file in which an org's events survive the end of its program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

#: Channel, data and replay id of an event.
Row: TypeAlias = "tuple[str, Any, Any]"


class EventFile:
    """Keeps events in a file, one JSON array a line.

    :param path: the file; it need not exist
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Iterator[Row]:
        """Give the events, in the order in which they were published."""
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                channel, data, replay_id = json.loads(line)
            except ValueError:
                # The program was killed while it wrote its last line.
                continue
            yield channel, data, replay_id

    def append(self, channel: str, data: Any, replay_id: Any) -> None:
        """Add an event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line((channel, data, replay_id)))

    def replace(self, rows: Iterable[Row]) -> None:
        """Keep these events and no others."""
        self._path.write_text("".join(map(_line, rows)), encoding="utf-8")


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
