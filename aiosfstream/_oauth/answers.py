"""What an answer of the token endpoint says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any


def is_signed(reply: Mapping[str, Any], secret: str) -> bool:
    """Say whether an answer of the token endpoint is signed with the consumer secret.

    The signature is the base64 form of an HMAC with SHA-256 over ``id`` and ``issued_at`` (REST API
    Developer Guide, "Understanding the Username-Password OAuth Authentication Flow").

    :param reply: the answer
    :param secret: the consumer secret
    """
    signed = [reply.get(name) for name in ("id", "issued_at", "signature")]
    if not all(isinstance(value, str) for value in signed):
        return False
    identity, issued_at, signature = (str(value).encode(errors="replace") for value in signed)
    digest = hmac.new(secret.encode(), identity + issued_at, hashlib.sha256).digest()
    return hmac.compare_digest(base64.b64encode(digest), signature)


def is_expired(reply: Mapping[str, Any]) -> bool:
    """Say whether a JWT assertion had expired when it arrived."""
    return "expired authorization code" in str(reply.get("error_description")).lower()


def clock_lag(date: str) -> float | None:
    """Say how many seconds a server's clock, as in its ``Date`` header, is ahead of ours."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
