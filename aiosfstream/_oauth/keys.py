"""Private keys that sign assertions, in the forms in which people have them."""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import Any, Final

from .._text import Secret

__all__ = ["load_private_key", "text_of_key"]

_PEM: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----(.*?)-----END \1-----", re.DOTALL)
#: Bytes. No key is longer.
_LONGEST: Final = 100_000
_KEY: Final = "private_key should be an RSA private key in PEM format"
_MAKE_ONE: Final = "make an RSA key with 'openssl genrsa -out key.pem 2048'"
_EC: Final = f"an EC key, which Salesforce does not take: {_MAKE_ONE}"

#: What people give in place of it, by the words of its first line, and what to do.
_OTHER_KINDS: Final = (
    (
        "CERTIFICATE",
        "a certificate: give the private key that belongs to it, the app has the certificate",
    ),
    ("PUBLIC KEY", "a public key: give the private key that belongs to it"),
    ("ENCRYPTED", "encrypted: decrypt it with 'openssl pkey -in key.pem -out plain.pem'"),
    ("EC ", _EC),
    ("DSA", f"a DSA key, which Salesforce does not take: {_MAKE_ONE}"),
    ("OPENSSH", "in the format of OpenSSH: convert it with 'ssh-keygen -p -m PEM -f FILE'"),
)


def text_of_key(private_key: object) -> Secret:
    """Give the text of what should be a private key, hidden.

    :param private_key: text or bytes; of anything else, what shows that it is none
    """
    if isinstance(private_key, os.PathLike):
        private_key = os.fspath(private_key)
    if isinstance(private_key, (bytes, bytearray)):
        private_key = bytes(private_key[:_LONGEST]).decode("ascii", "replace")
    if isinstance(private_key, str):
        return Secret(private_key[:_LONGEST])
    return Secret("" if private_key is None else f"({type(private_key).__name__})")


def load_private_key(pem: Secret) -> Any:
    r"""Load the key that signs assertions.

    :param pem: an RSA private key, PEM; its line breaks may be written as ``\n`` or be lost, or
        the whole may be in base64, as happens to environment variables
    :return: the key
    :raises ImportError: if PyJWT or cryptography is not installed
    :raises ValueError: if it is something else, which the error names without quoting it
    """
    try:
        import cryptography
        import jwt
    except ImportError as error:
        raise ImportError(
            "JWTBearerAuthenticator needs PyJWT with cryptography: pip install 'aiosfstream[jwt]'"
        ) from error
    # Both are used only later on, and had better be missed now.
    del cryptography, jwt
    key, problem = _loaded(pem)
    if problem is not None:
        raise ValueError(f"{_KEY}, and it is {problem}")
    return key


def _loaded(hidden_pem: Secret) -> tuple[Any, str | None]:
    """Give the key, or what is wrong with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _pem_of(hidden_pem.reveal())
    if pem is None:
        return None, _what_else(hidden_pem.reveal().strip())
    kinds = (problem for words, problem in _OTHER_KINDS if words in pem.partition("\n")[0])
    if (problem := next(kinds, None)) is not None:
        return None, problem
    try:
        key = load_pem_private_key(pem.encode("ascii", "replace"), password=None)
    except (UnsupportedAlgorithm, TypeError, ValueError):
        return None, "damaged or incomplete: give the whole file, its first and last line included"
    return (key, None) if isinstance(key, RSAPrivateKey) else (None, _other_algorithm(key))


def _other_algorithm(key: object) -> str:
    """Say what a key is that is not for RSA: its first line may leave that open."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    is_ec = isinstance(key, EllipticCurvePrivateKey)
    return _EC if is_ec else f"of another kind, which Salesforce does not take: {_MAKE_ONE}"


def _pem_of(text: str) -> str | None:
    """Give the private key's block with its lines as they should be, or None if there is no block."""
    blocks = list(_PEM.finditer(_broken(text))) or list(_PEM.finditer(_broken(_decoded(text))))
    if not blocks:
        return None
    # A file may have the certificate as well.
    match = min(blocks, key=lambda block: "PRIVATE KEY" not in block[1])
    label, body = match[1], match[2]
    if ":" in body:
        # It has headers, and they say that it is encrypted in the old way.
        label = f"ENCRYPTED {label}"
    body = "".join(body.split())
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def _broken(text: str) -> str:
    """Put line breaks where they are written out."""
    return text.replace("\\r", "").replace("\\n", "\n")


def _decoded(text: str) -> str:
    """Decode base64, or give an empty text for what is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode("ascii", "replace")
    except (binascii.Error, ValueError):
        return ""


def _what_else(text: str) -> str:
    """Say what a text without a block is."""
    if not text:
        return "empty: set it, nobody can log in without"
    if "-----BEGIN" in text:
        return "incomplete: give the whole file, its first and last line included"
    if (
        len(text) < 500
        and "\n" not in text
        and re.search(r"[/\\]|\.(pem|key|der|p12|pfx|jks|txt)$", text)
    ):
        return "the path of a file: give what is in it, Path(...).read_text()"
    return "nothing of that kind: give the whole file, its first and last line included"
