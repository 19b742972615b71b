"""The bodies of requests and answers: JSON, with the functions that the application chose."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

from .._text import fit
from ..exceptions import TransportError

#: What may dump to text or bytes, as ``json.dumps`` and ``orjson.dumps`` do.
Dumper = Callable[[Any], "str | bytes"]
Loader = Callable[[Any], Any]
#: A body as it was received.
Body = bytes | bytearray

#: Bytes before and after the place where a body cannot be read, which tell it from other bodies.
_AROUND: Final = 32
#: Digits. Python refuses to make a whole number of more, since that takes quadratic time.
_LONGEST_INTEGER: Final = 4000
#: Bytes of an error page that are looked at.
_LOOKED_AT: Final = 8192
_TITLE: Final = re.compile(r"<title[^<>]*>([^<]*)", re.I)
_TAG: Final = re.compile(r"<[^<>]*>")
#: Where JSON of Salesforce and of OAuth says what went wrong: a code and a sentence.
_REASONS: Final = (("errorCode", "message"), ("error", "error_description"))


class UnreadableError(ValueError):
    """A body is no JSON, whichever function reads it.

    :ivar digest: of the place where it cannot be read: equal for bodies that fail at the same text, whatever
        stands elsewhere in them
    """

    def __init__(self, message: str, digest: bytes) -> None:
        super().__init__(message)
        self.digest = digest


def parse_json(body: Body, loads: Loader) -> Any:
    """Parse a JSON body, with whatever function the application wants that done.

    What that function does not take is read by Python's own, with replacement characters for what is no text:
    bytes that are not UTF-8, halves of surrogate pairs. Control characters in texts, NaN and a byte order mark
    are allowed.

    :param body: the body as received
    :param loads: a function of str, such as ``json.loads``; orjson's is given the bytes
    :return: the value
    :raises UnreadableError: if Python cannot read it either
    """
    if body.startswith(BOM_UTF8):  # noqa: FURB188
        # Not removeprefix(), which copies a bytearray in any case.
        body = body[len(BOM_UTF8) :]
    try:
        if getattr(loads, "__module__", None) == "orjson":
            return loads(body)
        # Not the codec "utf-8-sig": Python decodes that in Python.
        return loads(str(body, "utf-8"))
    except Exception as error:  # noqa: BLE001 - whatever the application's function raises
        reason = fit(error)
    value, digest = _parse_leniently(body)
    if digest is not None:
        # Not while an exception is handled: those of parsers hold the body.
        raise UnreadableError(f"not JSON: {reason}", digest)
    return value


def _parse_leniently(body: Body) -> tuple[Any, bytes | None]:
    """Give the value, or the digest of what cannot be read in it."""
    try:
        # Besides UTF-8, JSON may come in UTF-16 and UTF-32.
        text = body.decode(json.detect_encoding(body), "replace")
        value = json.loads(text, strict=False, parse_int=_integer)
        # The halves of a pair that stand alone are those that UTF-16 cannot take back.
        paired = json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
        return json.loads(paired.decode("utf-16-le", "replace"), parse_int=_integer), None
    except json.JSONDecodeError as error:
        place = error.doc[max(error.pos - _AROUND, 0) : error.pos + _AROUND]
        return None, digest_of(error.msg, place)
    except (ValueError, RecursionError) as error:
        return None, digest_of(type(error).__name__)


def digest_of(*parts: str) -> bytes:
    """Give a short digest of *parts*."""
    return blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=16).digest()


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def dump_json(value: Any, dumps: Dumper) -> bytes:
    """Serialise *value* into a body.

    :param value: what to send
    :param dumps: a function that gives str or bytes, such as ``json.dumps`` or ``orjson.dumps``
    :return: the body
    :raises TransportError: if *value* is nothing that *dumps* can serialise
    """
    try:
        text = dumps(value)
        return text if isinstance(text, bytes) else text.encode()
    except Exception as error:
        raise TransportError(
            f"The message cannot be sent, it is not serialisable: {fit(error)}. Use values that json_dumps takes."
        ) from error


def looks_like_json(body: Body) -> bool:
    """Say whether *body* begins as an array or an object does."""
    return body[:64].removeprefix(BOM_UTF8).lstrip()[:1] in (b"[", b"{")


def words_of(body: Body) -> str:
    """Give what an error page says in its own words: its title, its text, or the reason that its JSON gives.

    :param body: the body of an answer
    :return: the words as they came, not fit to be shown; empty if there are none
    """
    beginning = bytes(body[:_LOOKED_AT])
    if looks_like_json(beginning) and len(body) <= _LOOKED_AT:
        return _reason_in(beginning) or beginning.decode("utf-8", "replace")
    text = beginning.removeprefix(BOM_UTF8).decode("utf-8", "replace")
    if not text.lstrip().startswith("<"):
        return text
    title = _TITLE.search(text)
    return (title and title[1].strip()) or _TAG.sub(" ", text)


def _reason_in(body: bytes) -> str:
    """Give the reason that *body* gives, as JSON of Salesforce's or of OAuth."""
    try:
        value = parse_json(body, json.loads)
    except ValueError:
        return ""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return ""
    for keys in _REASONS:
        texts = [first[key] for key in keys if isinstance(first.get(key), str)]
        if texts:
            return ": ".join(texts)
    return ""
