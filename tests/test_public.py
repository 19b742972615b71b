"""The public names, and every name of aiocometd that this package relies on."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from typing import Any

import aiocometd
import pytest
from aiocometd.client import Client as CometdClient
from aiocometd.transports import registry
from aiocometd.transports.abc import Transport

import aiosfstream
import aiosfstream.auth
import aiosfstream.client
import aiosfstream.events
import aiosfstream.exceptions
import aiosfstream.replay
import aiosfstream.testing
import aiosfstream.types
from aiosfstream._cometd.transport import LongPollingTransport

PUBLIC = [
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

#: What programs of earlier releases import from the modules.
MODULES = {
    "client": "API_VERSION COMETD_PATH LOGGER Client CometdClient ReplayMarkerStoragePolicy"
    " SalesforceStreamingClient",
    "auth": "AuthenticatorBase PasswordAuthenticator RefreshTokenAuthenticator SANDBOX_TOKEN_URL"
    " TOKEN_URL",
    "replay": "ConstantReplayId DefaultMappingStorage DefaultReplayIdMixin MappingStorage"
    " ReplayMarker ReplayMarkerStorage ReplayMarkerStorageContextManager ReplayOption",
    "exceptions": "EXCEPTION_PAIRS AiosfstreamException AuthenticationError ReplayError ServerError"
    " translate_errors translate_errors_context",
}

#: Names of aiocometd's client that it keeps to itself. Methods, and attributes of an instance.
UNDERSCORED_METHODS = (
    "_negotiate_transport",
    "_get_message",
    "_check_server_disconnected",
    "_verify_response",
)
UNDERSCORED_ATTRIBUTES = (
    "_transport",
    "_incoming_queue",
    "_closed",
    "_max_pending_count",
    "_json_dumps",
    "_json_loads",
)


def test_the_public_names() -> None:
    assert sorted(aiosfstream.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(aiosfstream, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = aiosfstream.nonsense


@pytest.mark.parametrize("module", MODULES)
def test_the_names_of_the_modules(module: str) -> None:
    for name in MODULES[module].split():
        assert hasattr(getattr(aiosfstream, module), name), name


@pytest.mark.parametrize(
    "module",
    [
        aiosfstream.client,
        aiosfstream.auth,
        aiosfstream.replay,
        aiosfstream.exceptions,
        aiosfstream.events,
        aiosfstream.testing,
        aiosfstream.types,
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_thing_says_what_it_is_for(module: Any) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_values_that_programs_rely_on() -> None:
    assert int(aiosfstream.ReplayOption.NEW_EVENTS) == -1
    assert int(aiosfstream.ReplayOption.ALL_EVENTS) == -2
    assert aiosfstream.auth.TOKEN_URL == "https://login.salesforce.com/services/oauth2/token"
    assert aiosfstream.auth.SANDBOX_TOKEN_URL == "https://test.salesforce.com/services/oauth2/token"
    assert aiosfstream.client.COMETD_PATH == "cometd"
    assert aiosfstream.ReplayMarker._fields == ("date", "replay_id")
    assert aiosfstream.ReplayMarker.__module__ == "aiosfstream.replay"


def test_a_null_handler_is_attached() -> None:
    handlers = logging.getLogger("aiosfstream").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


def test_what_is_relied_on_in_aiocometd() -> None:
    complaint = "aiocometd {} has no {} any more: aiosfstream/_cometd/client.py must be adapted"
    for name in UNDERSCORED_METHODS:
        assert callable(getattr(CometdClient, name, None)), complaint.format(
            aiocometd.__version__, name
        )
    client = aiosfstream.SalesforceStreamingClient(
        consumer_key="k", consumer_secret="s", username="u", password="p"
    )
    for name in UNDERSCORED_ATTRIBUTES:
        assert name in vars(client), complaint.format(aiocometd.__version__, name)
    for name in (*UNDERSCORED_METHODS, *UNDERSCORED_ATTRIBUTES):
        assert name in (aiosfstream._cometd.client.__doc__ or ""), (
            f"{name} is not listed with its reason"
        )


def test_the_transport_is_one_of_aiocometds() -> None:
    assert issubclass(LongPollingTransport, Transport)
    assert LongPollingTransport.__abstractmethods__ == frozenset()


def test_aiocometds_registry_is_untouched() -> None:
    modules = {transport.__module__ for transport in registry.TRANSPORT_CLASSES.values()}
    assert modules == {"aiocometd.transports.long_polling", "aiocometd.transports.websocket"}


def test_importing_brings_in_nothing_heavy() -> None:
    program = (
        "import sys, aiosfstream;"
        "print(sorted({'sqlite3', 'jwt', 'cryptography', 'redis', 'pytest', 'argparse', 'aiosfstream.types'} & set(sys.modules)))"
    )
    # Coverage, where it measures this, imports what it needs itself.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == "[]"
