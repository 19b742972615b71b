"""The content encodings of answers."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._http.encodings import PIECE, Decoder, EncodingError

BODY = b"[1, 2, 3]" * 1000


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


ENCODED = {
    "": BODY,
    "identity": BODY,
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    " GZip ": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "Deflate": raw_deflate(BODY),
}


def decoded(encoding: str, *chunks: bytes) -> bytes:
    """Decode a whole body that comes in chunks."""
    decoder = Decoder(encoding)
    body = b"".join(piece for chunk in chunks for piece in decoder.decode(chunk))
    decoder.end()
    return body


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_encodings(encoding: str, size: int) -> None:
    data = ENCODED[encoding]
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert decoded(encoding, *chunks) == BODY


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x"])
def test_an_encoding_that_was_not_asked_for(encoding: str) -> None:
    with pytest.raises(EncodingError, match="not asked for"):
        Decoder(encoding)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "Deflate"])
@pytest.mark.parametrize("missing", [1, 5, 20])
def test_what_ends_too_early(encoding: str, missing: int) -> None:
    with pytest.raises(EncodingError, match="too early"):
        decoded(encoding, ENCODED[encoding][:-missing])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_in_no_encoding(encoding: str) -> None:
    with pytest.raises(EncodingError):
        decoded(encoding, b"[1, 2, 3]" * 10)


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_an_empty_body(encoding: str) -> None:
    assert decoded(encoding) == decoded(encoding, b"") == b""


def test_several_parts_and_padding() -> None:
    assert decoded("gzip", gzip.compress(b"[1,") + gzip.compress(b"2]")) == b"[1,2]"
    assert decoded("gzip", gzip.compress(b"[1,"), gzip.compress(b"2]")) == b"[1,2]"
    assert decoded("gzip", gzip.compress(b"[1]") + b"\0" * 100, b"\0") == b"[1]"
    with pytest.raises(EncodingError, match="too early"):
        decoded("gzip", gzip.compress(b"[1,") + gzip.compress(b"2]")[:-4])


@pytest.mark.parametrize("extra", [0, 1, 100, 258, 259, 1000])
def test_no_piece_is_large(extra: int) -> None:
    body = bytes(50 * PIECE + extra)
    pieces = list(Decoder("gzip").decode(gzip.compress(body)))
    assert b"".join(pieces) == body == decoded("deflate", zlib.compress(body))
    assert max(map(len, pieces)) <= PIECE


@given(st.binary(max_size=100), st.sampled_from(["", "gzip", "deflate"]))
def test_any_body_is_decoded_or_none(body: bytes, encoding: str) -> None:
    try:
        decoded(encoding, body)
    except EncodingError as error:
        assert str(error)
