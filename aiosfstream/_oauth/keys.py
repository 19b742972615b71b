"""Private keys that sign assertions."""

from __future__ import annotations

from typing import Any, Final

_BAD_KEY: Final = "private_key should be an RSA private key in PEM format, without a passphrase"


def load_private_key(private_key: str | bytes) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from jwt.algorithms import RSAAlgorithm
        from jwt.exceptions import PyJWTError
    except ImportError as error:
        raise ImportError(
            "JWTBearerAuthenticator needs PyJWT with cryptography: pip install 'aiosfstream[jwt]'"
        ) from error
    try:
        key = RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(private_key)
    except (PyJWTError, UnsupportedAlgorithm, TypeError, ValueError):
        # Not chained: the cause might quote the key.
        raise ValueError(_BAD_KEY) from None
    # A public key is taken as well, to verify with.
    if not hasattr(key, "private_numbers"):
        raise ValueError(_BAD_KEY)
    return key
