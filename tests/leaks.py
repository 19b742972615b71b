"""Walks all that an error tracker may record of an exception, and looks for secrets in it."""

from __future__ import annotations

import base64
import html
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from aiosfstream import AuthenticatorBase

TESTS = Path(__file__).parent


def forms_of(secret: str) -> set[str]:
    """Give the forms in which a secret would be one still."""
    forms = {
        secret,
        urllib.parse.quote(secret),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        html.escape(secret),
    }
    data = secret.encode()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data).decode()
        forms.add(encoded[-(-8 * shift // 6) : 8 * (shift + len(data)) // 6])
    return forms


def exceptions_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, its causes, its contexts, and the exceptions that these hold."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, BaseException) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [part.__cause__, part.__context__, *part.args, *vars(part).values()]
        waiting += getattr(part, "exceptions", ())


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of its traceback that are not a test's own."""
    traceback = error.__traceback__
    while traceback is not None:
        if TESTS not in Path(traceback.tb_frame.f_code.co_filename).parents:
            yield traceback.tb_frame
        traceback = traceback.tb_next


def texts_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield all texts with the place where they stand."""
    for part in exceptions_of(error):
        kind = type(part).__name__
        yield f"{kind}: str", str(part)
        yield f"{kind}: repr", repr(part)
        yield f"{kind}: args", repr(part.args)
        yield f"{kind}: attributes", repr(vars(part))
        for name in dir(part):
            # A property that is deprecated.
            if name != "code" and not name.startswith("__"):
                yield f"{kind}.{name}", repr(getattr(part, name, None))
        for frame in frames_of(part):
            place = f"{kind}: {frame.f_code.co_name}()"
            for name, value in frame.f_locals.items():
                yield f"{place}: {name}", repr(value)
                if isinstance(value, AuthenticatorBase):
                    yield f"{place}: vars({name})", repr(vars(value))


def leaks_of(error: BaseException, secrets: Iterable[str]) -> list[str]:
    """Give the places where a secret can be found."""
    forms = {form for secret in secrets for form in forms_of(secret)}
    return [place for place, text in texts_of(error) if any(form in text for form in forms)]
