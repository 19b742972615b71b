"""Notes of consumers in a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aiosfstream import SQLiteStorage
from aiosfstream.storages import _presence
from aiosfstream.storages._presence import LIFETIME, Presence, describe
from aiosfstream.storages.sqlite import groups_of


def note(**changes: Any) -> str:
    """Write the note of this process, with changes."""
    return json.dumps({**json.loads(Presence().write()), **changes})


def ended() -> int:
    """Give the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_note_says_who_it_is() -> None:
    text = describe(note())
    assert text is not None
    assert f"process {os.getpid()} on " in text
    assert "seen 0 seconds ago" in text


def test_one_that_is_not_renewed_counts_no_more() -> None:
    assert describe(note(seen=time.time() - LIFETIME + 5))
    assert describe(note(seen=time.time() - LIFETIME - 1)) is None
    # The clocks of machines differ.
    assert "seen 0 seconds ago" in str(describe(note(seen=time.time() + 60)))


def test_a_process_of_this_machine_that_has_ended_counts_no_more() -> None:
    pid = ended()
    assert describe(note(pid=pid)) is None
    assert describe(note(pid=pid, host="elsewhere"))
    assert describe(note(pid=pid, boot="another"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "null",
        "{}",
        '{"pid": "x", "host": "h", "seen": 1}',
        '{"pid": 1, "host": "h"}',
    ],
)
def test_what_is_no_note(text: str) -> None:
    assert describe(text) is None


def test_a_note_is_renewed_while_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("aiosfstream.storages._presence.time.monotonic", lambda: now)
    presence = Presence()
    assert (presence.is_left, presence.is_due) == (False, False)
    presence.write()
    assert (presence.is_left, presence.is_due) == (True, False)
    now += _presence.RENEWAL
    assert presence.is_due
    presence.withdraw()
    assert (presence.is_left, presence.is_due) == (False, False)
    assert Presence().name != presence.name


async def notes_in(storage: SQLiteStorage) -> list[str]:
    """Read the notes in a storage's file."""
    groups = groups_of(storage)
    return await groups.in_thread(groups.file.consumers)


async def test_a_storage_renews_its_note_when_it_is_asked_to_store_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStorage(tmp_path / "markers.db") as storage:
        await storage.flush()
        assert await notes_in(storage) == []
        await storage.open_for(None)
        first = await notes_in(storage)
        assert len(first) == 1
        await storage.flush()
        assert storage.begin_flush()
        assert await notes_in(storage) == first
        monkeypatch.setattr(_presence, "RENEWAL", 0.0)
        assert not storage.begin_flush(), "only a flush renews it"
        await storage.flush()
        [second] = await notes_in(storage)
        assert json.loads(second)["seen"] > json.loads(first[0])["seen"]
