"""What applications need to test themselves without an org.

:class:`StreamingServer` is a Salesforce-like org on loopback. The pytest fixture
``salesforce_server`` runs one for a test; it is there wherever this package is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._bayeux import Session
from ._faults import (
    Alter,
    Call,
    CutAfter,
    CutBefore,
    Delay,
    Duplicate,
    Fault,
    ForgetSession,
    Garble,
    Hang,
    OAuthError,
    Redirect,
    Refuse,
    RevokeTokens,
    Status,
    Truncate,
)
from ._oauth import OAuth
from ._requests import Request
from ._server import Credentials, StreamingServer

if TYPE_CHECKING:
    from .conformance import check_marker_storage

__all__ = [
    "Alter",
    "Call",
    "Credentials",
    "CutAfter",
    "CutBefore",
    "Delay",
    "Duplicate",
    "Fault",
    "ForgetSession",
    "Garble",
    "Hang",
    "OAuth",
    "OAuthError",
    "Redirect",
    "Refuse",
    "Request",
    "RevokeTokens",
    "Session",
    "Status",
    "StreamingServer",
    "Truncate",
    "check_marker_storage",
]


def __getattr__(name: str) -> Any:
    # It needs the client's side, of which the server must know nothing.
    if name == "check_marker_storage":
        from .conformance import check_marker_storage

        return check_marker_storage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
