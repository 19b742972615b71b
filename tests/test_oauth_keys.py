"""Private keys, in the forms in which people have them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from aiosfstream import (
    JWTBearerAuthenticator,
)
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
