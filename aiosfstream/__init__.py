"""Asyncio client for the Salesforce Streaming API.

Everything that an application needs is importable from here; see :class:`Client` to begin with.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .auth import (
    AccessTokenAuthenticator,
    AuthenticatorBase,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
)
from .client import Client, ReplayMarkerStoragePolicy, SalesforceStreamingClient
from .events import ConnectionEvent, ConnectionEventKind
from .exceptions import (
    AiosfstreamException,
    AuthenticationError,
    ClientError,
    ClientInvalidOperation,
    ReplayError,
    ServerError,
    TransportConnectionClosed,
    TransportError,
    TransportInvalidOperation,
    TransportTimeoutError,
)
from .replay import (
    ConstantReplayId,
    DefaultMappingStorage,
    DurableStorage,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
)
from .service import HandlerFailure, Handlers, Retry, run, run_program

if TYPE_CHECKING:
    from .storages.sqlite import SQLiteStorage

__version__ = "1.0.0"

__all__ = [
    "AccessTokenAuthenticator",
    "AiosfstreamException",
    "AuthenticationError",
    "AuthenticatorBase",
    "Client",
    "ClientCredentialsAuthenticator",
    "ClientError",
    "ClientInvalidOperation",
    "ConnectionEvent",
    "ConnectionEventKind",
    "ConstantReplayId",
    "DefaultMappingStorage",
    "DurableStorage",
    "HandlerFailure",
    "Handlers",
    "JWTBearerAuthenticator",
    "MappingStorage",
    "PasswordAuthenticator",
    "RefreshTokenAuthenticator",
    "ReplayError",
    "ReplayMarker",
    "ReplayMarkerStorage",
    "ReplayMarkerStoragePolicy",
    "ReplayOption",
    "Retry",
    "SQLiteStorage",
    "SalesforceStreamingClient",
    "ServerError",
    "TransportConnectionClosed",
    "TransportError",
    "TransportInvalidOperation",
    "TransportTimeoutError",
    "__version__",
    "run",
    "run_program",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    # sqlite3 takes milliseconds to import and few programs need it.
    if name == "SQLiteStorage":
        from .storages.sqlite import SQLiteStorage

        return SQLiteStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
