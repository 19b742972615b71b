"""What applications need to test themselves without an org.

:class:`StreamingServer` is a Salesforce-like org on loopback. The pytest fixture
``salesforce_server`` runs one for a test; it is there wherever this package is installed.
"""

from ._faults import (
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
from ._server import Request, Session, StreamingServer

__all__ = [
    "CutAfter",
    "CutBefore",
    "Delay",
    "Duplicate",
    "Fault",
    "ForgetSession",
    "Garble",
    "Hang",
    "OAuthError",
    "Redirect",
    "Refuse",
    "Request",
    "RevokeTokens",
    "Session",
    "Status",
    "StreamingServer",
    "Truncate",
]
