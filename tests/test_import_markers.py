"""Markers are carried over from whatever old programs kept them in."""

import dbm
import dbm.dumb
import json
import os
import pickle
import shelve
import shutil
from pathlib import Path
from typing import Any

import pytest

from aiosfstream import MappingStorage, ReplayError, ReplayMarker, SQLiteStorage
from aiosfstream._cli.import_markers import import_markers, read_markers
from tests.commands import environment, run
from tests.support import EVENT, TOPIC

DATA = Path(__file__).parent / "data"
OLD_SHELF = {
    "/topic/InvoiceStatementUpdates": ReplayMarker("2017-05-16T23:06:11.529Z", 2),
    "/event/Low_Ink__e": ReplayMarker("2017-04-09T18:31:40.517Z", 2),
    "/data/ChangeEvents": ReplayMarker("1501010206653", 6421),
}


@pytest.fixture
def old_shelf(tmp_path: Path) -> Path:
    """Return the name of a shelf as an old release has left it."""
    for suffix in (".dat", ".dir"):
        shutil.copy(DATA / f"markers-0.5.0{suffix}", tmp_path / f"markers{suffix}")
    return tmp_path / "markers"


def shelf_of(path: Path, values: dict[str, Any], protocol: int | None = None) -> Path:
    """Make a shelf of the kind that every Python has."""
    files: Any = dbm.dumb.open(str(path), "c")  # noqa: SIM115
    with shelve.Shelf[Any](files, protocol=protocol) as shelf:
        shelf.update(values)
    return path


def json_of(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), "utf-8")
    return path


@pytest.mark.parametrize("named", ["markers", "markers.dat", "markers.dir"])
async def test_an_old_shelf_goes_into_a_database(old_shelf: Path, named: str) -> None:
    path = old_shelf.parent
    async with SQLiteStorage(path / "new.db") as storage:
        imported = await import_markers(path / named, storage)
        assert imported.stored == OLD_SHELF
        assert (imported.kept, imported.skipped) == ([], [])
    async with SQLiteStorage(path / "new.db") as storage:
        for channel, marker in OLD_SHELF.items():
            assert await storage.get_replay_marker(channel) == marker


async def test_the_shelf_stays_as_it_was(old_shelf: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in old_shelf.parent.iterdir()}
    await import_markers(str(old_shelf), MappingStorage({}))
    assert {entry.name: entry.read_bytes() for entry in old_shelf.parent.iterdir()} == before


async def test_a_newer_marker_is_kept_unless_told_otherwise(old_shelf: Path) -> None:
    newer, older = ReplayMarker("2020-01-01T00:00:00Z", 9), ReplayMarker("2001-01-01T00:00:00Z", 1)
    mapping = {"/event/Low_Ink__e": newer, "/data/ChangeEvents": older}
    imported = await import_markers(old_shelf, MappingStorage(mapping))
    assert imported.kept == ["/event/Low_Ink__e"]
    assert mapping == {**OLD_SHELF, "/event/Low_Ink__e": newer}
    imported = await import_markers(old_shelf, MappingStorage(mapping), overwrite=True)
    assert imported.kept == []
    assert mapping == OLD_SHELF


async def test_what_a_json_file_may_hold(tmp_path: Path) -> None:
    date = "2017-05-16T23:06:11.529Z"
    source = json_of(
        tmp_path / "markers.json",
        {
            "/u/Pair": [date, 1],
            "/u/Object": {"date": date, "replay_id": "abc"},
            "/u/NoDate": {"replay_id": 0},
            "/u/Id": 4,
            "/u/Null": None,
            "/u/Nonsense": {"id": 4},
            "/u/List": [1, 2, 3],
            "version": 2,
        },
    )
    mapping: dict[str, Any] = {}
    imported = await import_markers(source, MappingStorage(mapping))
    assert mapping == {
        "/u/Pair": ReplayMarker(date, 1),
        "/u/Object": ReplayMarker(date, "abc"),  # type: ignore[arg-type]
        "/u/NoDate": ReplayMarker("", 0),
        "/u/Id": ReplayMarker("", 4),
    }
    assert imported.skipped == ["/u/Null", "/u/Nonsense", "/u/List", "version"]


async def test_a_mapping_is_imported_as_it_is() -> None:
    mapping: dict[str, Any] = {}
    await import_markers({"/u/Id": 7, "/u/Marker": ReplayMarker("", 8)}, MappingStorage(mapping))
    assert mapping == {"/u/Id": ReplayMarker("", 7), "/u/Marker": ReplayMarker("", 8)}


async def test_a_filter_is_no_part_of_the_name_of_a_channel() -> None:
    old, new = ReplayMarker("2001-01-01T00:00:00Z", 1), ReplayMarker("2020-01-01T00:00:00Z", 9)
    mapping: dict[str, Any] = {}
    source = {"/topic/A?x='1'": new, "/topic/A?x='2'": old, "/topic/A": old}
    imported = await import_markers(source, MappingStorage(mapping))
    assert mapping == {"/topic/A": new}
    assert imported.kept == ["/topic/A", "/topic/A"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    values = {"/u/Marker": ReplayMarker("d", 1), "/u/Pair": ("d", 2), "/u/Id": 3}
    assert read_markers(shelf_of(tmp_path / "markers", values, protocol)) == values


async def test_other_things_in_a_shelf_are_passed_over(tmp_path: Path) -> None:
    values = {"/u/Marker": ReplayMarker("d", 1), "settings": Path("x")}
    imported = await import_markers(shelf_of(tmp_path / "markers", values), MappingStorage({}))
    assert imported.skipped == ["settings"]
    assert list(imported.stored) == ["/u/Marker"]


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


class Rebuilt:
    """Has tuples of another class made by the way of the oldest protocols."""

    def __reduce__(self) -> Any:
        import copyreg

        return copyreg._reconstructor, (tuple, tuple, ())  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["exploit", "rebuilt", "other"])
def test_nothing_in_a_shelf_is_executed(tmp_path: Path, value: str) -> None:
    target = tmp_path / "executed"
    values: dict[str, Any] = {"exploit": Exploit(target), "rebuilt": Rebuilt(), "other": Path("x")}
    source = shelf_of(tmp_path / "markers", {"/u/Marker": values[value]})
    with pytest.raises(ReplayError, match="holds something else than replay markers"):
        read_markers(source)
    assert not target.exists()


def raw_shelf_of(path: Path, content: bytes) -> Path:
    """Make a shelf with one value that no honest program has written."""
    with dbm.dumb.open(str(path), "c") as files:
        files[b"/u/Marker"] = content
    return path


async def test_what_a_value_holds_is_never_written_out(tmp_path: Path) -> None:
    # 40 levels of pairs of the same pair: its text would have a million million characters.
    doubled = b"K\x01" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(40))
    for content in (doubled + b"K\x05\x86.", b"K\x05" + doubled + b"\x86.", doubled + b"."):
        source = raw_shelf_of(tmp_path / "markers", content)
        imported = await import_markers(source, MappingStorage({}))
        assert (imported.stored, imported.skipped) == ({}, ["/u/Marker"])


def test_a_shelf_changes_no_class(tmp_path: Path) -> None:
    before = dict(vars(ReplayMarker))
    named = b"caiosfstream.replay\nReplayMarker\n"
    source = raw_shelf_of(tmp_path / "markers", named + b"}X\x03\x00\x00\x00barK\x01sb.")
    with pytest.raises(ReplayError, match="opcode BUILD"):
        read_markers(source)
    assert dict(vars(ReplayMarker)) == before


def test_a_shelf_that_lies_about_its_sizes_is_an_error(old_shelf: Path) -> None:
    old_shelf.with_suffix(".dir").write_text(f"'/event/Low_Ink__e', (0, {2**62})\n")
    with pytest.raises(ReplayError, match="cannot be read"):
        read_markers(old_shelf)


def test_a_damaged_shelf_is_an_error(old_shelf: Path) -> None:
    content = old_shelf.with_suffix(".dat")
    content.write_bytes(content.read_bytes()[:40])
    with pytest.raises(ReplayError, match="something else than replay markers"):
        read_markers(old_shelf)
    old_shelf.with_suffix(".dir").write_bytes(b"'/u/x', (0, 'y')\n")
    with pytest.raises(ReplayError, match="cannot be read"):
        read_markers(old_shelf)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[1, 2]", "should hold an object of channels"),
        (b"not json", "no JSON file, and no shelf that this Python can read"),
        (b"\x00\x01\x02\xff" * 9, "Import a shelf with the Python that wrote it"),
        (b"", "no JSON file"),
    ],
)
def test_a_file_that_is_nothing_of_all_that(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "markers.db"
    path.write_bytes(content)
    with pytest.raises(ReplayError, match=sentence) as caught:
        read_markers(path)
    assert repr(str(path)) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"No such file or directory\. Check its name\.$"):
        read_markers(tmp_path / "markers")
    (tmp_path / "markers.db").write_bytes(b"of another Python")
    with pytest.raises(ReplayError, match=r"But there is '.*markers.db'. Import a shelf with"):
        read_markers(tmp_path / "markers")


@pytest.mark.parametrize("suffix", ["", ".db"])
def test_an_empty_shelf_beside_a_foreign_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = shelf_of(tmp_path / "markers", {})
    assert read_markers(path) == {}
    (tmp_path / f"markers{suffix}").write_bytes(b"of another Python")
    with pytest.raises(ReplayError, match="The one by dbm.dumb is empty") as caught:
        read_markers(path)
    assert repr(str(tmp_path / f"markers{suffix}")) in str(caught.value)


def test_a_full_shelf_beside_a_foreign_file_is_read_with_a_warning(
    old_shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old_shelf.with_suffix(".db").write_bytes(b"of another Python")
    assert read_markers(old_shelf) == OLD_SHELF
    assert "The one by dbm.dumb is imported" in caplog.text


def test_a_kind_of_shelf_that_this_python_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbm, "whichdb", lambda name: "dbm.of_old")
    with pytest.raises(
        ReplayError, match="written with dbm.of_old, which this Python does not have"
    ):
        read_markers(tmp_path / "markers")


async def test_a_storage_that_fails_is_an_error(old_shelf: Path, tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path)
    with pytest.raises(ReplayError, match="unable to open"):
        await import_markers(old_shelf, storage)


# As a process


async def test_importing_markers(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    markers = tmp_path / "markers.json"
    markers.write_text(json.dumps({EVENT: 5, "/topic/T?x=1": ["2020-01-01T00:00:00Z", 7]}))
    status, _, told = await run(
        "import-markers", str(markers), "--state", str(state), env=environment()
    )
    assert status == 0, told
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        shelf[TOPIC] = ReplayMarker("2021-01-01T00:00:00Z", 9)
    status, _, told = await run(
        "import-markers", str(tmp_path / "shelf"), "--state", str(state), env=environment()
    )
    assert status == 0, told
    async with SQLiteStorage(state) as storage:
        assert await storage.get_replay_id(EVENT) == 5
        assert await storage.get_replay_marker("/topic/T") == ("2020-01-01T00:00:00Z", 7)
        assert await storage.get_replay_id(TOPIC) == 9


@pytest.mark.parametrize(
    "content", [None, "", "5", "{}", '{"x": 5}', '{"/event/A": null}', "\x00\x01"]
)
async def test_what_cannot_be_imported(tmp_path: Path, content: str | None) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_text(content)
    status, _, told = await run(
        "import-markers", str(source), "--state", str(tmp_path / "s"), env=environment()
    )
    assert status == 1
    assert told.startswith("aiosfstream: ")
    assert str(source) in told
    assert told.count("\n") == 1
