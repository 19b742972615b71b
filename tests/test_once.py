"""Warnings that are given once."""

from __future__ import annotations

from aiosfstream._cometd.once import MAX_NAMES, Once


def test_each_name_is_warned_of_once() -> None:
    warned = Once()
    assert [warned.is_new(name) for name in ("/a", "/b", "/a", ("/a",))] == [
        True,
        True,
        False,
        True,
    ]


def test_names_without_end_fill_neither_the_log_nor_the_memory() -> None:
    warned = Once()
    assert sum(warned.is_new(f"/{number}") for number in range(3 * MAX_NAMES)) == MAX_NAMES
    assert not warned.is_new("/0")


def test_names_that_differ_late_count_as_one() -> None:
    warned = Once()
    assert warned.is_new("/a" * 10_000)
    assert not warned.is_new("/a" * 10_001)
