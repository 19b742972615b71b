"""Carry markers over from a shelf or a JSON file into any storage."""

from __future__ import annotations

import dbm
import json
import os
import shelve
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .exceptions import ReplayError
from .replay import ReplayMarker, ReplayMarkerStorage, _as_marker


async def import_markers(source: str | os.PathLike[str], storage: ReplayMarkerStorage) -> int:
    """Copy every marker of *source* into *storage*; what is stored there of a channel is replaced.

    :param source: a JSON file that holds an object of channels to replay ids or ``[date, id]`` pairs,
        or the name that a shelf was opened with
    :param storage: where to
    :return: how many markers were copied
    :raises ReplayError: if *source* cannot be read or is empty, or *storage* cannot be written
    """
    markers = read_markers(source)
    for channel, marker in markers.items():
        await storage.set_replay_marker(channel, marker)
    return len(markers)


def read_markers(source: str | os.PathLike[str]) -> dict[str, ReplayMarker]:
    """Read the markers of a JSON file or a shelf.

    :param source: as for :func:`import_markers`
    :return: channels to markers
    :raises ReplayError: if it cannot be read or is empty
    """
    path = Path(source)
    entries = _read_json(path)
    if entries is None:
        entries = _read_shelf(path)
    markers = {}
    for channel, value in entries.items():
        marker = _as_marker(value)
        if marker is None or not str(channel).startswith("/"):
            raise ReplayError(
                f"{path} holds no replay markers: {channel!r:.100} is no channel with a marker"
            )
        markers[str(channel).partition("?")[0]] = ReplayMarker(*marker)
    if not markers:
        raise ReplayError(
            f"{path} holds no markers. A shelf can seem empty where Python has another dbm module than the"
            " one that wrote it: read it with the Python that wrote it, write its items to a JSON file, and"
            " import that."
        )
    return markers


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict):
        raise ReplayError(f"{path} should hold a JSON object of channels to replay ids")
    return value


def _read_shelf(path: Path) -> Mapping[str, Any]:
    try:
        kind = dbm.whichdb(str(path))
        if not kind:
            raise ReplayError(
                f"{path} is neither a JSON file nor a shelf that this Python can read"
                if kind == "" or path.exists()
                else f"There is no file or shelf {path}"
            )
        # Read-only, so that a foreign file is never changed.
        with shelve.open(str(path), flag="r") as shelf:
            return dict(shelf)
    except ReplayError:
        raise
    except Exception as error:
        raise ReplayError(f"The shelf {path} cannot be read: {error}") from error
