"""The content encodings of answers, taken off piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

#: What is asked for.
ACCEPTED: Final = "gzip, deflate"
#: Bytes. More than that is not decompressed at once, so that the event loop goes on in between.
PIECE: Final = 256 * 1024

_PLAIN: Final = ("", "identity")
_GZIP: Final = ("gzip", "x-gzip")
_DEFLATE: Final = "deflate"
_GZIP_START: Final = b"\x1f\x8b"


class EncodingError(Exception):
    """A body is not in the encoding that its header names; the text says what is wrong with it."""


class Decoder:
    """Takes the encoding off one body.

    :param encoding: the ``Content-Encoding`` header
    :raises EncodingError: if it is none that was asked for
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding.strip().lower()
        if self._encoding not in (*_PLAIN, *_GZIP, _DEFLATE):
            raise EncodingError("an encoding that was not asked for")
        self._inflater: zlib._Decompress | None = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Give what *data* holds, in pieces of :data:`PIECE` at most if it is compressed.

        :param data: the next bytes of the body
        :raises EncodingError: if they are not in the encoding
        """
        if self._encoding in _PLAIN:
            yield data
            return
        while data:
            if self._inflater is None or self._inflater.eof:
                if self._inflater is not None and not data.startswith(_GZIP_START):
                    # Padding. What begins anew is another part of the same body.
                    return
                self._inflater = self._make_inflater(data)
            yield from self._inflate(self._inflater, data)
            data = self._inflater.unused_data

    @staticmethod
    def _inflate(inflater: zlib._Decompress, data: bytes) -> Iterator[bytes]:
        piece = b""
        # With the last input taken, there may be more output than has gone into a piece.
        while data or len(piece) == PIECE:
            try:
                piece = inflater.decompress(data, PIECE)
            except zlib.error as error:
                raise EncodingError(str(error)) from error
            yield piece
            data = inflater.unconsumed_tail

    def end(self) -> None:
        """Take note that the body has ended.

        :raises EncodingError: if there should be more of it
        """
        if self._inflater is not None and not self._inflater.eof:
            raise EncodingError("compressed data that ends too early")

    def _make_inflater(self, data: bytes) -> zlib._Decompress:
        if self._encoding in _GZIP:
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        # Some servers leave out the header that the encoding has by RFC 9110: its low bits are 8.
        return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
