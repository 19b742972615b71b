"""Carrying stored markers over: from a shelf, a JSON file or any mapping into a storage."""

from __future__ import annotations

import argparse
import dbm
import importlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..exceptions import ReplayError
from ..replay import ReplayMarker, ReplayMarkerStorage, flush, read_marker, should_store
from .console import say
from .pickles import PickleError, read_pickle

__all__ = ["Imported", "import_markers", "read_markers", "run_import"]

LOGGER = logging.getLogger(__name__)

#: What the kinds of dbm add to the name of a shelf: one file each, or several.
_SUFFIXES: Final = {
    "dbm.ndbm": (".pag", ".dir", ".db"),
    "dbm.dumb": (".dat", ".dir", ".bak"),
    "dbm.gnu": ("",),
    "dbm.sqlite3": ("",),
}
_OTHER_PYTHON: Final = (
    "Import a shelf with the Python that wrote it: which kinds of shelves a Python can read depends on"
    " how it was built."
)
_ALL_SUFFIXES: Final = ("", ".db", ".dat", ".pag")


@dataclass
class Imported:
    """What became of the markers.

    :ivar stored: the markers that are in the storage now
    :ivar kept: the channels of which the storage had a newer marker, which it still has
    :ivar skipped: the names that are no channels or have no marker
    """

    stored: dict[str, ReplayMarker] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


async def import_markers(
    source: str | os.PathLike[str] | Mapping[str, Any],
    storage: ReplayMarkerStorage,
    *,
    overwrite: bool = False,
) -> Imported:
    """Store markers that were kept elsewhere.

    :param source: the name of a shelf, as given to :func:`shelve.open`; a JSON file that holds an object
        of channels; or a mapping of channels. What belongs to a channel is a marker, or a date and a
        replay id as a list or as an object with ``date`` and ``replay_id``, or a replay id alone
    :param storage: where to
    :param overwrite: whether a marker replaces a newer one too
    :return: what became of them
    :raises ReplayError: if the source cannot be read, or a marker cannot be stored
    """
    values = source if isinstance(source, Mapping) else read_markers(source)
    imported = Imported()
    for name, value in values.items():
        # Earlier programs may have kept the filter's query of a PushTopic.
        channel = name.partition("?")[0]
        marker = _understood(channel, value) if channel.startswith("/") else None
        if marker is None:
            imported.skipped.append(channel)
        elif overwrite or should_store(await storage.get_replay_marker(channel), marker):
            await storage.set_replay_marker(channel, marker)
            imported.stored[channel] = marker
        else:
            imported.kept.append(channel)
    await flush(storage)
    return imported


def read_markers(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a shelf or a JSON file. Nothing is written, and nothing in it is executed.

    :param source: the name of a shelf, with or without what its kind of dbm adds to it, or of a JSON
        file
    :return: channels and what is stored for them
    :raises ReplayError: if it is neither, or needs another Python
    """
    path = Path(source)
    for name in (path, path.with_suffix("")) if path.suffix else (path,):
        kind = dbm.whichdb(str(name))
        if kind:
            return _read_shelf(name, kind)
    try:
        content = path.read_bytes()
    except OSError as error:
        sentence = f"The markers in {str(path)!r} cannot be read: {error.strerror}. Check its name."
        others = _files_of(path, _ALL_SUFFIXES)
        if others:
            sentence += f" But there is {str(others[0])!r}. {_OTHER_PYTHON}"
        raise ReplayError(sentence) from error
    return _read_json(path, content)


def _files_of(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """Give the files that may be parts of a shelf of this name."""
    return [name for name in (Path(f"{path}{suffix}") for suffix in suffixes) if name.is_file()]


def _read_json(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ReplayError(
            f"{str(path)!r} is no JSON file, and no shelf that this Python can read. {_OTHER_PYTHON}"
        ) from error
    if not isinstance(values, dict):
        raise ReplayError(
            f"The JSON file {str(path)!r} should hold an object of channels, not {type(values).__name__!r}."
        )
    return values


def _read_shelf(path: Path, kind: str) -> dict[str, Any]:
    try:
        module: Any = importlib.import_module(kind)
        with closing(module.open(str(path), "r")) as database:
            # A program may keep other things in the same shelf.
            values = {
                key.decode("utf-8"): _unpickle(path, database[key]) if key[:1] == b"/" else None
                for key in database.keys()  # noqa: SIM118
            }
    except ImportError as error:
        raise ReplayError(
            f"The shelf {str(path)!r} was written with {kind}, which this Python does not have."
            f" {_OTHER_PYTHON}"
        ) from error
    except ReplayError:
        raise
    except Exception as error:
        # What a damaged file can raise has no bounds.
        raise ReplayError(
            f"The shelf {str(path)!r} cannot be read: {error}. {_OTHER_PYTHON}"
        ) from error
    _look_for_others(path, kind, empty=not values)
    return values


def _look_for_others(path: Path, kind: str, *, empty: bool) -> None:
    """Refuse an empty shelf that a Python with another dbm has made beside the true one."""
    ours = _SUFFIXES.get(kind, ())
    others = _files_of(path, [suffix for suffix in _ALL_SUFFIXES if suffix not in ours])
    if not others:
        return
    sentence = (
        f"Beside the shelf {str(path)!r}, which {kind} has written, there is {str(others[0])!r}: Pythons"
        " differ in the kind of dbm that they use, and one makes a new shelf where another left its own."
    )
    if empty:
        raise ReplayError(
            f"{sentence} The one by {kind} is empty. {_OTHER_PYTHON} If the other file has nothing to"
            " do with it, move it elsewhere."
        )
    LOGGER.warning("%s The one by %s is imported; look into the other.", sentence, kind)


def _unpickle(path: Path, content: bytes) -> Any:
    try:
        return read_pickle(content)
    except PickleError as error:
        raise ReplayError(
            f"The shelf {str(path)!r} holds something else than replay markers: {error}. Import a shelf that a"
            " client has kept markers in."
        ) from error


def _understood(channel: str, value: Any) -> ReplayMarker | None:
    """Give the marker for a marker, a date and a replay id, or a replay id alone; None for anything else."""
    try:
        marker = read_marker(channel, value)
    except ReplayError:
        return None
    # A container may be as deep, and a text of it as long, as a hostile file likes.
    known = marker is not None and isinstance(marker.replay_id, (int, str, float))
    return marker if known else None


async def run_import(options: argparse.Namespace) -> int:
    """Carry markers over."""
    from ..storages.sqlite import SQLiteStorage

    async with SQLiteStorage(options.state) as storage:
        imported = await import_markers(options.source, storage)
    if not imported.stored and not imported.kept:
        say(f"aiosfstream: {options.source} holds no replay markers of channels")
        return 1
    say(f"{len(imported.stored)} markers are in {options.state}")
    if imported.kept:
        say(f"Newer ones were kept of: {', '.join(imported.kept)}")
    if imported.skipped:
        say(f"No markers of channels, passed over: {', '.join(imported.skipped)}")
    return 0
