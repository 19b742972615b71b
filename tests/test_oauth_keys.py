"""Private keys, in the forms in which people have them."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream import (
    JWTBearerAuthenticator,
)
from aiosfstream._oauth.keys import load_private_key, text_of_key
from tests.oauth import (
    KEY,
    PRIVATE_KEY,
    PUBLIC_PEM,
    USER,
    pem,
)

BAD_KEYS: dict[str, Any] = {
    "nothing": "",
    "no PEM": "not-a-key",
    "a public key": PUBLIC_PEM,
    "an elliptic curve": pem(ec.generate_private_key(ec.SECP256R1())),
    "with a passphrase": pem(PRIVATE_KEY, b"passphrase"),
    "cut off": pem(PRIVATE_KEY)[:400],
    "no bytes": 7,
    "no text": "\ud800",
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_key_that_cannot_sign_is_refused_without_being_quoted(case: str) -> None:
    key = BAD_KEYS[case]
    with pytest.raises(ValueError, match="RSA private key in PEM format") as caught:
        JWTBearerAuthenticator(KEY, USER, key)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "BEGIN" not in str(caught.value)


@pytest.mark.parametrize("key", [pem(PRIVATE_KEY), pem(PRIVATE_KEY).decode()])
def test_a_key_may_be_text_or_bytes(key: str | bytes) -> None:
    assert JWTBearerAuthenticator(KEY, USER, key).username == USER


@pytest.mark.parametrize("missing", ["jwt", "cryptography"])
def test_without_the_extra_the_flow_says_what_to_install(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
import aiosfstream
try:
    aiosfstream.JWTBearerAuthenticator("key", "user", "pem")
except ImportError as error:
    assert "pip install 'aiosfstream[jwt]'" in str(error), error
else:
    raise SystemExit("it did not say so")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


TEXT = pem(PRIVATE_KEY).decode()
TRADITIONAL = PRIVATE_KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.TraditionalOpenSSL,
    serialization.NoEncryption(),
).decode()
CERTIFICATE = TEXT.replace("PRIVATE KEY", "CERTIFICATE")

GOOD_KEYS: dict[str, str | bytes] = {
    "as it is": TEXT,
    "traditional": TRADITIONAL,
    "with literal line breaks": TEXT.replace("\n", "\\n"),
    "with literal line breaks of Windows": TEXT.replace("\n", "\\r\\n"),
    "with line breaks of Windows": TEXT.replace("\n", "\r\n"),
    "on one line": TEXT.replace("\n", " "),
    "without line breaks": TEXT.replace("\n", ""),
    "indented": TEXT.replace("\n", "\n    "),
    "in quotes": f'"{TEXT}"',
    "base64": base64.b64encode(TEXT.encode()).decode(),
    "base64 in lines": base64.encodebytes(TEXT.encode()),
    "base64 of literal line breaks": base64.b64encode(TEXT.replace("\n", "\\n").encode()),
    "after its certificate": CERTIFICATE + TEXT,
    "before its certificate": TEXT + CERTIFICATE,
    "with words around": f"Bag Attributes\n    friendlyName: x\n{TEXT}\n",
    "bytes": TEXT.encode(),
}


@pytest.mark.parametrize("case", GOOD_KEYS)
def test_a_key_is_taken_as_environments_make_it(case: str) -> None:
    key = load_private_key(text_of_key(GOOD_KEYS[case]))
    assert key.private_numbers() == PRIVATE_KEY.private_numbers()
    JWTBearerAuthenticator(KEY, USER, GOOD_KEYS[case])


def other(key: Any) -> str:
    return pem(key).decode()


WRONG_KEYS: dict[str, tuple[Any, str]] = {
    "an elliptic curve": (other(ec.generate_private_key(ec.SECP256R1())), "an EC key"),
    "an elliptic curve by name": (TEXT.replace("PRIVATE", "EC PRIVATE"), "an EC key"),
    "dsa": (other(dsa.generate_private_key(2048)), "of another kind"),
    "ed25519": (other(ed25519.Ed25519PrivateKey.generate()), "of another kind"),
    "with a passphrase": (pem(PRIVATE_KEY, b"x"), "encrypted: decrypt it"),
    "with an old passphrase": (
        TRADITIONAL.replace("KEY-----\nM", "KEY-----\nProc-Type: 4,ENCRYPTED\n\nM", 1),
        "encrypted: decrypt it",
    ),
    "a certificate": (CERTIFICATE, "a certificate: give the private key"),
    "base64 of a certificate": (base64.b64encode(CERTIFICATE.encode()), "a certificate"),
    "a public key": (PUBLIC_PEM, "a public key"),
    "of ssh": (TEXT.replace("PRIVATE", "OPENSSH PRIVATE"), "in the format of OpenSSH"),
    "a path": ("/etc/salesforce/server.key", "the path of a file"),
    "a path on Windows": ("C:\\keys\\server.pem", "the path of a file"),
    "a file's name": ("server.key", "the path of a file"),
    "a Path": (Path("server.key"), "the path of a file"),
    "none": (None, "empty"),
    "empty": ("  ", "empty"),
    "empty bytes": (b"", "empty"),
    "cut off": (TEXT[:500], "incomplete"),
    "damaged": (TEXT.replace(TEXT.splitlines()[3], ""), "damaged"),
    "words": ("not a key at all", "nothing of that kind"),
    "a number": (7, "nothing of that kind"),
}


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_what_is_no_such_key_is_named(case: str) -> None:
    key, problem = WRONG_KEYS[case]
    with pytest.raises(ValueError, match="private_key should be an RSA private key") as caught:
        JWTBearerAuthenticator(KEY, USER, key)
    assert f"and it is {problem}" in str(caught.value)
    assert caught.value.__context__ is None


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
def test_any_text_is_a_key_or_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="private_key"):
        load_private_key(text_of_key(text))
