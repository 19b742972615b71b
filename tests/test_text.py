"""Text from elsewhere, made fit for a log."""

from __future__ import annotations

import base64
import copy
import html
import json
import pickle
import urllib.parse
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiosfstream._text import LIMIT, MASK, Secret, fit, without_secrets

SECRET = "pä 55/w+o\"r'd<&>=%41\\x"
TOKEN = "00D000000000001!AQcAQH0dMHZfz972Szmpkb58urFRkgeBGsxL_QJWwYMfAbUeeG7c1E6LYUfiDUkWe6H34r1AAwOR8B8fLEz6n04NPGRrq0FM"


def basic(text: str) -> str:
    """Give the base64 form of *text*."""
    return base64.b64encode(text.encode()).decode()


#: How a server, a proxy or a library may write a secret.
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quote": urllib.parse.quote,
    "quote everything": lambda text: urllib.parse.quote(text, safe=""),
    "quote, lower case": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "quote in Latin-1": lambda text: urllib.parse.quote(text, encoding="latin-1"),
    "quote_plus": urllib.parse.quote_plus,
    "urlencode": lambda text: urllib.parse.urlencode({"password": text}),
    "html": html.escape,
    "html, quotes apart": lambda text: html.escape(text, quote=False),
    "html, numbers": lambda text: "".join(f"&#{ord(character)};" for character in text),
    "html, hexadecimal": lambda text: "".join(f"&#x{ord(character):X};" for character in text),
    "json": json.dumps,
    "json, unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "json, slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "json for html": lambda text: json.dumps(text).replace("<", "\\u003c").replace("&", "\\u0026"),
    "json of json": lambda text: json.dumps(json.dumps(text)),
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda text: repr(text.encode()),
    "html of json": lambda text: html.escape(json.dumps(text)),
    "quote of html": lambda text: urllib.parse.quote(html.escape(text)),
    "base64": basic,
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 behind a user": lambda text: basic("u:" + text),
    "base64 behind another user": lambda text: basic("me:" + text),
    "base64 behind a third user": lambda text: basic("you:" + text),
    "base64, followed": lambda text: basic("u:" + text + ":tail"),
    "Basic": lambda text: "Basic " + basic("user:" + text),
    "quoted base64": lambda text: urllib.parse.quote(basic("user:" + text)),
}

#: Not the dots of a mask; and not what Python writes as \\x80 in a text, but as \\xc2\\x80 in bytes.
CHARACTERS = st.characters(exclude_characters="." + "".join(map(chr, (*range(0x80, 0xA1), 0xAD))))


@pytest.mark.parametrize("secret", [SECRET, TOKEN, "s3cr", "a b+c d", "ab%20%2B", "&amp;&lt;1"])
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_in_each_form_and_wherever_it_stands(form: str, secret: str) -> None:
    written = FORMS[form](secret)
    text = fit(f"you sent {written} and {written}; it is no good", secrets=[secret])
    assert written not in text
    assert text.count(MASK) == 2
    assert text.startswith("you sent")
    assert text.endswith("it is no good")


@given(
    secret=st.text(CHARACTERS, min_size=4, max_size=30).filter(lambda text: len(text.strip()) >= 4),
    form=st.sampled_from(sorted(FORMS)),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
@example(secret="a\nsec", form="plain", before="", after="")
@example(secret="%%%%", form="plain", before="%", after="25")
def test_no_secret_comes_through(secret: str, form: str, before: str, after: str) -> None:
    try:
        written = FORMS[form](secret)
    except UnicodeEncodeError:
        written = secret
    text = fit(before + written + after, secrets=[secret])
    assert secret not in text
    assert written not in text or len(written) < 4
    shown = " ".join("".join(c if c.isprintable() else " " for c in secret).split())
    assert len(shown) < 4 or shown not in text


@given(st.text(), st.integers(min_value=10, max_value=400))
@example("\x1b[31mred\x9b\u2028\u2029\u202e\u2066\u200b\ufeff\x00\r\n\t", 300)
@example("\ud800", 300)
def test_the_result_is_one_short_line_that_can_be_printed(text: str, limit: int) -> None:
    line = fit(text, limit=limit)
    assert len(line) <= limit
    assert line.isprintable()
    assert line == line.strip()


@given(st.text("abc XYZ,;.?'()[]{}é漢😀", max_size=100))
def test_what_is_fit_already_stays(text: str) -> None:
    text = " ".join(text.split())
    assert fit(text, secrets=["no such secret"]) == text


@pytest.mark.parametrize("position", range(2 * LIMIT - 140, 2 * LIMIT + 20))
def test_a_cut_leaves_no_part_of_a_secret(position: int) -> None:
    # Masks make a text shorter, so that what stood far back moves up.
    padding = (TOKEN + " ") * 3
    text = padding + "x" * (position - len(padding)) + TOKEN + "y" * 100_000
    line = fit(text, secrets=[TOKEN])
    assert "00D0" not in line
    assert "AQcA" not in line


@pytest.mark.parametrize("kept", [0.5, 0.6, 0.99])
def test_the_better_part_of_a_secret_is_masked_as_well(kept: float) -> None:
    part = TOKEN[: round(len(TOKEN) * kept) + 1]
    assert fit(f"got {part}", secrets=[TOKEN]) == f"got {MASK}"


def test_what_secrets_have_in_common_with_other_texts_stays() -> None:
    assert fit("org 00D000000000001 is locked", secrets=[TOKEN]) == "org 00D000000000001 is locked"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic dXNlcjpwYXNz",
        "Proxy-Authorization: basic dXNlcjpwYXNzdw==",
        "{'Authorization': 'Bearer 00Dxx!AQEAQ'}",
        "Authorization=Bearer%2000Dxx!AQEAQ",
        "OAuth 00Dxx!AQEAQ",
        "/topic/00Dxx0000001gPL!AQEAQdXNlcjp.p4ss_x is no channel",
        "got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.AQEAQdXNlcjpus@er",
        "'00Dxx0000001gPLEAW%21AQEAQdXNlcjp.p4ss_x'",
        "http://user:p4ss@proxy:3128",
        "http://us@er:p4ss@proxy:3128",
    ],
)
def test_credentials_of_strangers_are_masked(text: str) -> None:
    line = fit(text)
    assert MASK in line
    for part in ("dXNlcjp", "AQEAQ", "p4ss", "us@er"):
        assert part not in line


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication is off",
        "OAuth 2.0 Authorization Errors",
        "https://a.b/c?d=@e",
        "a@b.c",
        "the org 00Dxx0000001gPL! is locked",
    ],
)
def test_words_stay(text: str) -> None:
    assert fit(text) == text


def test_other_objects_become_text() -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert fit(ValueError("a\nb")) == "a b"
    assert fit(b"caf\xc3\xa9 \xff") == "café \ufffd"
    assert fit(bytearray(b"x") * 10_000).endswith("x" + MASK)
    assert fit(None) == "None"
    assert fit(12) == "12"
    assert fit(Bad()) == "Bad"
    assert fit(10**5000) == "int"


class Counting(str):
    """A text that knows how much of it was taken."""

    __slots__ = ()
    taken: ClassVar = 0

    def __getitem__(self, key: object) -> str:
        """Take a part."""
        part = str.__getitem__(self, key)  # type: ignore[index]
        Counting.taken = max(Counting.taken, len(part))
        return part


def test_of_a_huge_text_only_the_beginning_is_looked_at() -> None:
    Counting.taken = 0
    assert fit(Counting("x" * 10_000_000), secrets=[TOKEN]).startswith("xxx")
    assert 0 < Counting.taken <= 2 * LIMIT + 12 * len(TOKEN)


def test_a_secret_says_nothing_unless_it_is_asked() -> None:
    secret = Secret("pa55word")
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}", f"{secret!r:>20}"):
        assert "pa55" not in text
    assert secret.reveal() == "pa55word"
    assert fit("pa55word", secrets=[secret, None, ""]) == MASK
    assert not hasattr(secret, "__dict__")


def test_secrets_can_be_compared_and_copied() -> None:
    secret = Secret("pa55wörd")
    assert secret == Secret("pa55wörd")
    assert secret != Secret("other")
    assert secret != "pa55wörd"
    assert len({secret, Secret("pa55wörd")}) == 1
    assert secret
    assert not Secret("")
    for other in (copy.copy(secret), copy.deepcopy(secret), pickle.loads(pickle.dumps(secret))):
        assert other == secret


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_a_value_without_a_secret_is_handed_on_as_it_came(value: Any) -> None:
    assert without_secrets(value, [TOKEN, None, ""]) is value
    assert without_secrets(value, []) is value


@pytest.mark.parametrize("form", ["plain", "quote", "quote everything", "html", "base64", "Basic"])
def test_a_value_loses_its_secrets_and_nothing_else(form: str) -> None:
    written = FORMS[form](TOKEN)
    long = "x" * 100_000 + "\n"
    value = {"error": long + written, "ext": [{"a": 1, written: [written]}, None], "id": "7"}
    kept = without_secrets(value, [Secret(TOKEN)])
    assert kept["error"].startswith(long)
    assert kept["id"] == "7"
    assert kept["ext"][0]["a"] == 1
    assert "AQcAQH0dMHZf" not in str(kept)
    assert written not in str(kept)
    assert written in str(value), "the original is not changed"


def test_a_value_of_any_depth_is_looked_at() -> None:
    value: Any = TOKEN
    for _ in range(10_000):
        value = [value]
    assert TOKEN not in str(innermost(without_secrets(value, [TOKEN])))


@pytest.mark.parametrize("secrets", [[], ["another secret"]])
def test_a_value_loses_access_tokens_that_are_not_known_any_more(secrets: list[str]) -> None:
    kept = without_secrets({"error": f"403::you sent {TOKEN}, or so", "ext": [[TOKEN]]}, secrets)
    assert kept == {
        "error": f"403::you sent 00D000000000001!{MASK}, or so",
        "ext": [[f"00D000000000001!{MASK}"]],
    }


def innermost(value: Any) -> Any:
    """Give what is in the last of lists within lists."""
    while isinstance(value, list) and value:
        [value] = value
    return value


@pytest.mark.parametrize(
    ("text", "secrets", "shown"),
    [
        # What was no secret becomes one when the line breaks go.
        ("<my\nown  secret>", ["my own secret"], f"<{MASK}>"),
        ("<abcdefgh>", ["abcdefgh", "cdef"], f"<{MASK}>"),
        ("<abcdefgh>", ["abcdef", "cdefgh"], f"<{MASK}>"),
        ("<aaaaaa>", ["aaaa"], f"<{MASK}>"),
        ("<abcdabcd>", ["abcd"], f"<{MASK}{MASK}>"),
    ],
)
def test_secrets_that_overlap_are_masked_as_a_whole(
    text: str, secrets: list[str], shown: str
) -> None:
    line = fit(text, secrets=secrets)
    assert line in (shown, shown.replace(MASK * 2, MASK))


@pytest.mark.parametrize("offset", range(0, len(TOKEN), 7))
def test_however_often_a_secret_stands_there_no_part_of_it_is_shown(offset: int) -> None:
    line = fit("x" * offset + (TOKEN + " ") * 1000, secrets=[TOKEN])
    assert "00D" not in line
    assert "AQc" not in line
