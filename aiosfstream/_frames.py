"""What an error tracker would record of an exception, taken away before the exception leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar

import aiohttp
from aiocometd.exceptions import AiocometdException
from multidict import CIMultiDict, CIMultiDictProxy, MultiMapping
from yarl import URL

from ._text import LIMIT, Secret, fit

__all__ = ["without_frames"]

ErrorT = TypeVar("ErrorT", bound=BaseException)

Secrets = Iterable["str | Secret | None"]

#: Texts that built-in exceptions keep outside of ``args`` and ``__dict__``.
_FIELDS: Final = ("strerror", "filename", "filename2", "reason", "msg", "value", "name")
#: What of a request and its answer may be held by an exception, and what is put in its place.
_OF_A_REQUEST: Final[dict[type, Any]] = {
    MultiMapping: CIMultiDictProxy(CIMultiDict[str]()),
    aiohttp.BasicAuth: None,
    aiohttp.ClientResponse: None,
    aiohttp.ClientSession: None,
}
#: How deep lists and dicts are looked into.
_DEEPEST: Final = 5


def without_frames(error: ErrorT, *, secrets: Secrets = ()) -> ErrorT:
    """Take away from an exception, its causes and its contexts what may hold a secret.

    Error trackers record the variables of every frame of a traceback, and the arguments and
    attributes of every exception. So the tracebacks go; and from exceptions that are not this package's
    go the request and its headers, the responses, the proxy's credentials and the input of parsers.
    Their classes stay, and so do their texts, made fit for a log.

    :param error: the exception; it is changed in place
    :param secrets: what must not be shown in texts and arguments
    :return: the same exception
    """
    known = tuple(secrets)
    for part in _parts(error):
        part.__traceback__ = None
        if not _is_ours(part):
            # An exception of the application's may be as odd as it likes.
            with suppress(Exception):
                _clean(part, known)
    return error


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Give the exception and every one that can be reached from it."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not isinstance(part, BaseException):
            continue
        seen.add(id(part))
        waiting += filter(None, (part.__cause__, part.__context__, *vars(part).values()))
        for name in ("args", "exceptions"):
            with suppress(Exception):
                waiting += getattr(part, name, ())
        yield part


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, AiocometdException) and type(error).__module__.startswith(
        "aiosfstream."
    )


def _clean(error: BaseException, secrets: Secrets) -> None:
    """Clean what an exception of somebody else's holds. What cannot be set stays, such as properties."""
    if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
        error.message = "Server disconnected"
        error.args = (error.message,)
    if isinstance(error, (UnicodeDecodeError, UnicodeEncodeError)):
        error.args = tuple(_nothing(arg) if arg is error.object else arg for arg in error.args)
        error.object = _nothing(error.object)
    if isinstance(error, AttributeError):
        error.obj = None
    if isinstance(error, json.JSONDecodeError):
        error.doc = ""
    cleaner = _Cleaner(secrets, type(error).__module__.startswith("aiohttp."))
    error.args = tuple(cleaner.cleaned(value) for value in error.args)
    attributes = dict(vars(error))
    attributes.update((name, getattr(error, name, None)) for name in _FIELDS)
    for name, value in attributes.items():
        with suppress(Exception):
            if (better := cleaner.cleaned(value)) is not value:
                setattr(error, name, better)


def _nothing(value: Any) -> Any:
    return type(value)()


class _Cleaner:
    """Finds what stands in place of arguments and attributes.

    :param secrets: what must not be shown
    :param is_of_aiohttp: whether they are of an exception of aiohttp, which knows the whole request
    """

    __slots__ = ("_is_of_aiohttp", "_secrets")

    def __init__(self, secrets: Secrets, is_of_aiohttp: bool) -> None:
        self._secrets = secrets
        self._is_of_aiohttp = is_of_aiohttp

    def cleaned(self, value: Any, depth: int = 0) -> Any:
        """Give what stands in place of *value*."""
        if isinstance(value, (tuple, list, dict)) and not isinstance(value, aiohttp.BasicAuth):
            return self._items(value, depth + 1) if depth < _DEEPEST else self._text(value)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (bytes, bytearray)):
            return self._text(value).encode()
        if isinstance(value, URL):
            return _without_user(value)
        return _OF_A_REQUEST.get(_kind(value), value)

    def _items(self, values: Any, depth: int) -> Any:
        if isinstance(values, dict):
            if self._is_of_aiohttp:
                return {}
            return {self.cleaned(k, depth): self.cleaned(v, depth) for k, v in values.items()}
        items = [self.cleaned(item, depth) for item in values]
        # Not by calling the class, since named tuples are made in ways of their own.
        return tuple.__new__(type(values), items) if isinstance(values, tuple) else items

    def _text(self, value: object) -> str:
        return fit(value, secrets=self._secrets, limit=2 * LIMIT)


def _kind(value: object) -> type:
    return next((kind for kind in _OF_A_REQUEST if isinstance(value, kind)), type(value))


def _without_user(url: URL) -> URL:
    with suppress(ValueError):
        url = url.with_user(None)
    return url.with_query(None).with_fragment(None)
