"""Looks into what a storage remembers beside markers."""

from __future__ import annotations

from typing import Any

from aiosfstream._in_flight import Line
from aiosfstream._internals import Slot
from aiosfstream._notes import Notes
from aiosfstream.replay import ReplayMarkerStorage, direct_store_of, store_marker

_NOTES = Slot("notes of a marker storage", Notes)


def notes_of(storage: ReplayMarkerStorage) -> Notes:
    """Return what *storage* remembers."""
    return _NOTES.of(storage)


def lines_of(storage: ReplayMarkerStorage) -> dict[str, Line]:
    """Return the messages in flight of *storage*."""
    return notes_of(storage).in_flight.lines


async def store_directly(storage: ReplayMarkerStorage, message: dict[str, Any]) -> None:
    """Store a marker as a client that iterates does."""
    store = direct_store_of(storage)
    if store is None or not store(message):
        await store_marker(storage, message)
