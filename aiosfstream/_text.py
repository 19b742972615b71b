"""Text that came from elsewhere, made fit for a log or an error; and secrets that no log can show."""

from __future__ import annotations

import base64
import html
import operator
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus

__all__ = ["LIMIT", "MASK", "Secret", "fit", "without_secrets"]

#: Characters that a text has at most, unless told otherwise.
LIMIT: Final = 300
#: What stands in place of a secret, and of what is cut off.
MASK: Final = "..."
#: Characters of the shortest secret that is masked. Anything shorter would tear every sentence apart.
_SHORTEST: Final = 4
#: Characters of the shortest secret whose first half is masked as well, where a server cut it off.
_LONG: Final = 16
#: How often a text is unescaped: HTML in JSON in a URL.
_LAYERS: Final = 3
#: How deep lists and dicts are looked into. What is deeper is masked as a whole.
_DEEPEST: Final = 200
#: Characters that one character of a secret may become: four bytes, each as ``%F0``.
_WIDEST: Final = 12

#: One character, or one byte of one, as URLs, JSON, Python and HTML write it.
_ESCAPE: Final = re.compile(
    rb"%(?P<url>[0-9A-Fa-f]{2})"
    rb"|\\x(?P<byte>[0-9A-Fa-f]{2})"
    rb"|\\u(?P<pair>[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})"
    rb"|\\u(?P<one>[0-9A-Fa-f]{4})"
    rb"|\\(?P<plain>[\"'\\/bfnrt])"
    rb"|\\U(?P<wide>[0-9A-Fa-f]{8})"
    rb"|&#(?P<decimal>[0-9]{1,7});"
    rb"|&#[Xx](?P<hexadecimal>[0-9A-Fa-f]{1,6});"
    rb"|&(?P<name>[A-Za-z]{2,6});"
)
_PLAIN: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{4,}={0,2}")

#: Credentials that give themselves away, whoever they belong to: a header's value, an access token of
#: an org, opaque or a JWT, a URL's user.
_CREDENTIALS: Final = re.compile(
    r"\b((?i:Basic|Bearer|OAuth)(?:\s|%20|\+){1,8})(?=[^\s\"'<>,;]*(?:[0-9=!]|[a-z][A-Z]))[^\s\"'<>,;]{8,}"
)
_ACCESS_TOKEN: Final = re.compile(
    r"(?<![\w-])(00D[A-Za-z0-9]{12,15}(?:!|%21|&#33;|&#x21;|\\u0021)|eyJ(?=[\w-]{8,200}\.[\w-]{8}))[^\s\"'<>,;]{8,}"
)
_USER_OF_URL: Final = re.compile(r"(?<=://)[^\s/\"'<>]{1,400}@")


class Secret:
    """A password, token or key that no representation shows.

    :param value: the secret
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def of(cls, value: str | Secret) -> Secret:
        """Give a secret for what may be one already.

        :param value: the secret
        """
        return value if isinstance(value, cls) else cls(str(value))

    def reveal(self) -> str:
        """Give the secret, to write it into a request."""
        return self._value

    def __repr__(self) -> str:
        """Show nothing."""
        return "Secret(...)"

    def __bool__(self) -> bool:
        """Say whether there is anything to hide."""
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        """Compare the secrets."""
        return self._value == other.reveal() if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        """Hash the secret."""
        return hash(self._value)


def fit(text: object, *, secrets: Iterable[str | Secret | None] = (), limit: int = LIMIT) -> str:
    """Make a text that came from elsewhere fit for a log or an error.

    The result is one line without characters that control a terminal, reorder a line or cannot be seen.
    Each secret is masked wherever it stands: plain, escaped for a URL, HTML, JSON or Python, and
    in base64. So is what follows ``Basic`` and ``Bearer``, an access token of an org, and the user of a
    URL. Of a long text only the beginning is looked at.

    :param text: the text; bytes are taken as UTF-8, of other objects their ``str()`` is
    :param secrets: what must not be shown; those of less than four characters cannot be told from words
    :param limit: how many characters the result has at most
    :return: the text to show
    """
    values = {value for secret in secrets if (value := _value_of(secret))}
    wanted = 2 * limit
    beginning, is_whole = _beginning(text, wanted + _WIDEST * max(map(len, values), default=0))
    end = len(beginning) if is_whole else wanted
    line = _one_line(_masked(beginning, values, end))
    # What was no secret may have become one: "my\nsecret".
    line = _masked(line, {_one_line(value) for value in values}, len(line))
    line = _USER_OF_URL.sub(MASK + "@", line)
    line = _CREDENTIALS.sub(rf"\g<1>{MASK}", line)
    line = _ACCESS_TOKEN.sub(rf"\g<1>{MASK}", line)
    if is_whole and len(line) <= limit:
        return line
    return line[: max(limit - len(MASK), 0)].rstrip() + MASK


def without_secrets(value: Any, secrets: Iterable[str | Secret | None]) -> Any:
    """Give a JSON value with each secret and access token in its texts masked, nothing else changed or cut.

    For what is handed on as it came, such as the message of a refusal. It looks for the usual forms of a
    secret only, at the speed of ``str.replace()``: what is to be shown goes through :func:`fit`. What is
    nested deeper than anybody nests is masked as a whole.

    :param value: texts, numbers, lists and dicts
    :param secrets: what must not be in it
    :return: the same object if there is nothing to mask, else a copy
    """
    values = {found for secret in secrets if (found := _value_of(secret))}
    forms = {form for one in values if len(one) >= _SHORTEST for form in _forms(one)}
    return _replaced(value, sorted(forms, key=len, reverse=True), 0)


def _forms(secret: str) -> Iterator[str]:
    yield from (secret, html.escape(secret), html.escape(secret, quote=False))
    data = secret.encode("utf-8", "surrogatepass")
    yield from (quote(data), quote(data, safe=""), quote_plus(data))
    yield from (core.decode("ascii") for core in _base64_cores(data))


def _replaced(value: Any, forms: list[str], depth: int) -> Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, MASK)
        # One that is not known any more, such as that of an earlier session.
        return (
            _ACCESS_TOKEN.sub(rf"\g<1>{MASK}", value) if "00D" in value or "eyJ" in value else value
        )
    if not isinstance(value, (list, dict)):
        return value
    if depth > _DEEPEST:
        # Whatever is in there, nobody has a use for it.
        return MASK if value else value
    if isinstance(value, list):
        items = [_replaced(item, forms, depth + 1) for item in value]
        return value if all(map(operator.is_, items, value)) else items
    pairs = {
        _replaced(name, forms, depth + 1): _replaced(item, forms, depth + 1)
        for name, item in value.items()
    }
    is_same = (
        all(map(operator.is_, pairs.values(), value.values())) and pairs.keys() == value.keys()
    )
    return value if is_same else pairs


def _value_of(secret: str | Secret | None) -> str | None:
    return secret.reveal() if isinstance(secret, Secret) else secret


def _beginning(text: object, size: int) -> tuple[str, bool]:
    """Give the first *size* characters of *text*, and whether that is all of it."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        # A character has at most four bytes.
        is_whole = len(text) <= 4 * size
        text = bytes(text[: 4 * size]).decode("utf-8", "replace")
        return text[:size], is_whole and len(text) <= size
    if not isinstance(text, str):
        try:
            text = str(text)
        except Exception:  # noqa: BLE001 - whatever a foreign object's method raises
            text = type(text).__name__
    return text[:size], len(text) <= size


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class _View(NamedTuple):
    """A text as bytes, some of its escapes undone.

    :ivar data: the bytes, in UTF-8
    :ivar starts: where in the text the character of each byte begins
    :ivar ends: where it ends
    """

    data: bytes
    starts: list[int]
    ends: list[int]


def _masked(text: str, secrets: Iterable[str], end: int) -> str:
    """Give *text* up to *end*, with a mask in place of each secret and of what remains of one."""
    shown: list[str] = []
    position = 0
    for start, stop in sorted(_places(text, secrets)):
        if start >= end:
            break
        if start > position or not shown:
            shown += [text[position:start], MASK]
        position = max(position, stop)
    shown.append(text[position:end])
    return "".join(shown)


def _places(text: str, secrets: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Find the secrets in *text*: where each begins and ends."""
    needles = {
        needle for secret in secrets if len(secret) >= _SHORTEST for needle in _encodings(secret)
    }
    if not needles or not _may_hold(text, needles):
        return
    for view in _views(text):
        for needle in needles:
            for start, stop in (*_occurrences(view.data, needle), *_encoded(view.data, needle)):
                yield view.starts[start], view.ends[stop - 1]
        if b"+" in view.data:
            # That is how a form writes a space, and a plus is a plus no longer once it is unescaped.
            data = view.data.replace(b"+", b" ")
            for needle in needles:
                for start, stop in _occurrences(data, needle.replace(b"+", b" ")):
                    yield view.starts[start], view.ends[stop - 1]


def _may_hold(text: str, needles: Iterable[bytes]) -> bool:
    """Say whether it is worth while to look closely: mostly there is nothing to find."""
    parts = {part for needle in needles for part in (_head(needle), *_base64_cores(needle))}
    parts |= {part.replace(b"+", b" ") for part in parts}
    data, count = text.encode("utf-8", "surrogatepass"), 1
    for _ in range(_LAYERS + 1):
        spaced = data.replace(b"+", b" ")
        if any(part in data or part in spaced for part in parts):
            return True
        if not count:
            break
        data, count = _ESCAPE.subn(_unescaped_character, data)
    return False


def _head(needle: bytes) -> bytes:
    """Give what is a secret already: of a long one the first half."""
    return needle if len(needle) < _LONG else needle[: len(needle) // 2]


def _encodings(text: str) -> tuple[bytes, bytes]:
    """Encode *text* in UTF-8, and with Latin-1 where that has the character."""
    characters = (c.encode("latin-1" if c <= "\xff" else "utf-8", "surrogatepass") for c in text)
    return text.encode("utf-8", "surrogatepass"), b"".join(characters)


def _views(text: str) -> Iterator[_View]:
    """Give *text* itself, and with one layer of escapes after the other undone."""
    sizes = [len(character.encode("utf-8", "surrogatepass")) for character in text]
    places = [place for place, size in enumerate(sizes) for _ in range(size)]
    view = _View(text.encode("utf-8", "surrogatepass"), places, [place + 1 for place in places])
    yield view
    for _ in range(_LAYERS):
        unescaped = _unescaped(view)
        if len(unescaped.data) == len(view.data):
            break
        view = unescaped
        yield view


def _unescaped(view: _View) -> _View:
    data, starts, ends = bytearray(), list[int](), list[int]()
    position = 0
    for match in _ESCAPE.finditer(view.data):
        before, after = match.span()
        character = _unescaped_character(match)
        data += view.data[position:before] + character
        starts += view.starts[position:before] + [view.starts[before]] * len(character)
        ends += view.ends[position:before] + [view.ends[after - 1]] * len(character)
        position = after
    data += view.data[position:]
    return _View(bytes(data), starts + view.starts[position:], ends + view.ends[position:])


def _unescaped_character(match: re.Match[bytes]) -> bytes:
    kind, found = str(match.lastgroup), match[str(match.lastgroup)]
    if kind in ("url", "byte"):
        return bytes([int(found, 16)])
    if kind == "plain":
        return _PLAIN.get(found, found)
    if kind in ("decimal", "hexadecimal", "wide"):
        number = int(found, 10 if kind == "decimal" else 16)
        character = chr(number) if number <= sys.maxunicode else match[0].decode()
    elif kind == "name":
        character = html.unescape(match[0].decode())
    else:
        units = bytes.fromhex(found.decode().replace("\\u", ""))
        character = units.decode("utf-16-be", "surrogatepass")
    return character.encode("utf-8", "surrogatepass")


def _occurrences(data: bytes, needle: bytes) -> Iterator[tuple[int, int]]:
    """Find *needle*, and what is at least the first half of it where it is long."""
    head, tail = _head(needle), needle[len(_head(needle)) :]
    start = data.find(head)
    while start >= 0:
        stop = start + len(head)
        yield start, stop + _common(data[stop : start + len(needle)], tail)
        start = data.find(head, start + 1)


def _common(one: bytes, other: bytes) -> int:
    """Say how long the beginning is that both have in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _encoded(data: bytes, secret: bytes) -> Iterator[tuple[int, int]]:
    """Find the base64 runs that have *secret* in them, such as those of ``Basic user:password``."""
    cores = _base64_cores(secret)
    for run in _BASE64.finditer(data):
        if any(core in run[0] for core in cores):
            yield run.span()


def _base64_cores(secret: bytes) -> set[bytes]:
    """Give what *secret* is in base64, wherever it begins in what is encoded, without its neighbours' bits."""
    cores = set()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        core = encoded[-(-8 * shift // 6) : 8 * (shift + len(secret)) // 6]
        if len(core) >= _SHORTEST:
            cores |= {core, core.translate(bytes.maketrans(b"+/", b"-_"))}
    return cores
