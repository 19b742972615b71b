"""Pickled markers are read without unpickling, whatever the pickle would do."""

from __future__ import annotations

import pickle
import pickletools
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream import ReplayMarker
from aiosfstream._cli.pickles import MAX_PICKLE, PickleError, find, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
MARKER = b"caiosfstream.replay\nReplayMarker\n"

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.builds(ReplayMarker, st.text(), inner)
    ),
    max_leaves=12,
)


@given(plain, st.sampled_from(PROTOCOLS))
def test_what_pickle_writes_is_read(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x80\x04" + tail))
def test_nonsense_is_refused_or_a_value(content: bytes) -> None:
    try:
        value = read_pickle(content)
    except PickleError as error:
        assert str(error)
    else:
        assert not callable(value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # Sets attributes of the class.
        (MARKER + b"}X\x01\x00\x00\x00xK\x01sb.", "opcode BUILD"),
        (MARKER + b"N}X\x07\x00\x00\x00__new__K\x01s\x86b.", "opcode BUILD"),
        (MARKER + b".", "no replay marker"),
        (b"cos\nsystem\nX\x01\x00\x00\x00x\x85R.", "os.system"),
        (b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"cbuiltins\ntuple\n)R.", "something else"),
        (b"ccopyreg\n_reconstructor\ncbuiltins\ntuple\ncbuiltins\ntuple\n)\x87R.", "no replay"),
        (b"(caiosfstream.replay\nReplayMarker\no.", "opcode OBJ"),
        (b"(iaiosfstream.replay\nReplayMarker\n.", "opcode INST"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"P1\n.", "opcode PERSID"),
        (b"(I1\nI2\n.", "no replay marker"),
        (MARKER + b"K\x01\x85R.", "damaged: TypeError"),
        (b"t.", "damaged"),
        (b"K\x01", "damaged"),
        (b"", "damaged"),
        (pickle.dumps("x" * MAX_PICKLE), f"at most {MAX_PICKLE}"),
        (pickle.dumps(b"bytes"), "opcode"),
        (pickle.dumps({1, 2}), "opcode"),
    ],
)
def test_what_makes_no_marker_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(PickleError, match=reason):
        read_pickle(content)


def sized(opcode: bytes, size: int, form: str) -> bytes:
    return opcode + struct.pack(form, size)


@pytest.mark.parametrize(
    "content",
    [
        # Where the memo is an array, this makes one with 2**27 places.
        b"Nr\x00\x00\x00\x08.",
        b"Nr\xff\xff\xff\x7f.",
        sized(b"\x8b", 2**31 - 1, "<i"),
        sized(b"\x8d", 2**40, "<Q"),
        sized(b"\x8e", 2**40, "<Q"),
        sized(b"\x95", 2**40, "<Q"),
        sized(b"\x96", 2**40, "<Q"),
        sized(b"B", 2**31 - 1, "<I"),
        sized(b"X", 2**32 - 1, "<I"),
        b"(" * 60000 + b"t" * 3000 + b".",
        b"]" * 30000 + b"a" * 29999 + b".",
        b"X\x01\x00\x00\x00a" + b"2\x86" * 30000 + b".",
        b"L" + b"9" * 60000 + b"L\n.",
    ],
)
def test_a_small_pickle_takes_little_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        read_pickle(content)
    except PickleError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_a_text_of_a_value_that_refers_to_itself_is_never_made() -> None:
    # 40 levels of pairs of the same pair: its text would have a million million characters.
    doubled = b"".join(b"q%ch%c\x86" % (level, level) for level in range(40))
    assert isinstance(read_pickle(b"K\x01" + doubled + b"."), tuple)


def test_a_name_gives_a_function_and_never_a_class() -> None:
    for module in ("aiosfstream.replay", "__main__", "elsewhere"):
        assert not isinstance(find(module, "ReplayMarker"), type)
    assert not isinstance(find("builtins", "tuple"), type)
    assert not isinstance(find("copyreg", "_reconstructor"), type)
    before = dict(vars(ReplayMarker))
    with pytest.raises(PickleError):
        read_pickle(MARKER + b"}X\x03\x00\x00\x00barK\x01sb.")
    assert dict(vars(ReplayMarker)) == before


def test_the_opcodes_that_are_read_exist() -> None:
    names = {opcode.name for opcode in pickletools.opcodes}
    from aiosfstream._cli import pickles

    assert names >= pickles._VALUES
