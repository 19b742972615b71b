"""The bodies of requests and answers: JSON, by whatever functions the application wants."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Any

from ..exceptions import TransportError

#: What may dump to text or bytes, as ``json.dumps`` and ``orjson.dumps`` do.
Dumper = Callable[[Any], "str | bytes"]
Loader = Callable[[Any], Any]


def parse_json(body: bytes, loads: Loader) -> Any:
    """Parse a JSON body, whatever function the application wants that done with.

    :param body: the body as received
    :param loads: a function of str, such as ``json.loads``; orjson's is given the bytes
    :return: the value
    :raises ValueError: if *loads* fails, for whatever reason
    """
    try:
        if getattr(loads, "__module__", None) == "orjson":
            return loads(body)
        # Not the codec "utf-8-sig": Python decodes that in Python.
        return loads(str(body.removeprefix(BOM_UTF8), "utf-8"))
    except Exception as error:
        raise ValueError(f"not JSON: {_describe(error)}") from error


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
            f"The message cannot be sent, it is not serialisable: {error}. Use values that json_dumps takes."
        ) from error


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
