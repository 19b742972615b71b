"""What applications need for tests without an org.

:class:`StreamingServer` behaves like an org, on the loopback interface. The pytest fixture
``salesforce_server`` runs one for a test; it is there wherever this package is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._credentials import (
    AccessTokenCredentials,
    ClientCredentials,
    Credentials,
    JWTCredentials,
    RefreshTokenCredentials,
)
from ._faults import (
    Advise,
    Alter,
    AlterBody,
    ByteOrderMark,
    Call,
    Compress,
    CutAfter,
    CutBefore,
    Delay,
    Deliver,
    Drip,
    Duplicate,
    Farewell,
    Fault,
    ForgetSession,
    Garble,
    Hang,
    Head,
    Hold,
    HoldBody,
    Insert,
    OAuthError,
    Overtake,
    Redirect,
    Refuse,
    RevokeTokens,
    Status,
    Truncate,
)
from ._gates import Gate
from ._oauth import OAuth
from ._plan import PlannedFaults
from ._requests import Request
from ._server import StreamingServer
from ._sessions import Session
from ._thread import serve_in_thread

if TYPE_CHECKING:
    from .conformance import check_marker_storage

__all__ = [
    "AccessTokenCredentials",
    "Advise",
    "Alter",
    "AlterBody",
    "ByteOrderMark",
    "Call",
    "ClientCredentials",
    "Compress",
    "Credentials",
    "CutAfter",
    "CutBefore",
    "Delay",
    "Deliver",
    "Drip",
    "Duplicate",
    "Farewell",
    "Fault",
    "ForgetSession",
    "Garble",
    "Gate",
    "Hang",
    "Head",
    "Hold",
    "HoldBody",
    "Insert",
    "JWTCredentials",
    "OAuth",
    "OAuthError",
    "Overtake",
    "PlannedFaults",
    "Redirect",
    "RefreshTokenCredentials",
    "Refuse",
    "Request",
    "RevokeTokens",
    "Session",
    "Status",
    "StreamingServer",
    "Truncate",
    "check_marker_storage",
    "serve_in_thread",
]


def __getattr__(name: str) -> Any:
    # It needs the client's side, of which the server must know nothing.
    if name == "check_marker_storage":
        from .conformance import check_marker_storage

        return check_marker_storage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
