"""``check``: say who logs in where, and whether channels can be subscribed to."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import aiohttp

from .._text import fit
from ..auth import AuthenticatorBase
from ..client import API_VERSION, Client
from ..exceptions import AiosfstreamException
from .channels import Replay, parse_channel
from .console import UsageError
from .credentials import Flow, authenticator_from, credentials_from
from .network import Network, network_from
from .output import Output, standard_output
from .words import in_words

__all__ = ["run_check"]

USER_INFO_PATH: Final = "/services/oauth2/userinfo"
#: Seconds and bytes for the user's name, which is only nice to have.
USER_INFO_TIMEOUT: Final = 10.0
MAX_USER_INFO: Final = 65536


async def run_check(options: argparse.Namespace) -> int:
    """Log in, say who that is, and try each channel."""
    starts = [parse_channel(text) for text in options.channels]
    output = standard_output()
    flow, authenticator = authenticator_from(credentials_from(options.token_file))
    network = network_from(options)
    version = options.api_version or API_VERSION
    try:
        client = Client(
            authenticator,
            api_version=version,
            session_factory=network.session_factory,
            ssl=network.ssl,
        )
    except ValueError as error:
        raise UsageError(in_words(str(error))) from error
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(client)
        finally:
            # Who it is helps to understand why the Streaming API refuses them.
            if authenticator.access_token is not None:
                facts = await _who(flow, authenticator, network)
                for name, value in (*facts, ("API version", version)):
                    await _tell(output, name, value)
        await _tell(output, "Streaming API", "connected")
        granted = [await _try(client, output, channel, start) for channel, start in starts]
    return 0 if all(granted) else 1


async def _tell(output: Output, name: str, value: str) -> None:
    await output.write(f"{name + ':':<15} {value}\n")


async def _try(client: Client, output: Output, channel: str, start: Replay | None) -> bool:
    """Subscribe to a channel for a moment, and say what came of it."""
    replay: Any = start
    try:
        await client.subscribe(channel, replay=replay)
        await client.unsubscribe(channel)
    except AiosfstreamException as error:
        await output.write(f"{channel}: refused. {_one_line(error)}\n")
        return False
    await output.write(f"{channel}: can be subscribed to\n")
    return True


def _one_line(error: Exception) -> str:
    text = in_words(" ".join(str(error).split()))
    # Where a channel starts is said with its name here.
    return text.replace("--replay new or --fallback new", "CHANNEL@new or CHANNEL@all")


async def _who(
    flow: Flow, authenticator: AuthenticatorBase, network: Network
) -> list[tuple[str, str]]:
    """Say who has logged in where, as far as Salesforce tells."""
    info = await _user_info(authenticator, network)
    # The identity URL ends with the ids of the org and the user.
    _, org, user = ("//" + (authenticator.id or "")).rsplit("/", 2)
    known = getattr(authenticator, "username", "")
    name = info.get("preferred_username") or info.get("username") or known
    user = info.get("user_id") or user
    shown = f"{name} ({user})" if name and user else name or user
    return [
        ("User", fit(shown) or "not told"),
        ("Org", fit(info.get("organization_id") or org) or "not told"),
        ("Instance", authenticator.instance_url or "not told"),
        ("Login", flow.name),
    ]


async def _user_info(authenticator: AuthenticatorBase, network: Network) -> dict[str, str]:
    """Ask for the user's name; an app may lack the scope for that."""
    headers: dict[str, str] = {}
    await authenticator.outgoing([], headers)
    content = b""
    with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        async with (
            network.session_factory() as session,
            session.get(
                f"{(authenticator.instance_url or '').rstrip('/')}{USER_INFO_PATH}",
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=USER_INFO_TIMEOUT),
                ssl=True if network.ssl is None else network.ssl,
            ) as answer,
        ):
            if answer.status == 200:
                content = await answer.content.read(MAX_USER_INFO)
    with suppress(ValueError, RecursionError):
        info = json.loads(content)
        if isinstance(info, dict):
            return {name: value for name, value in info.items() if isinstance(value, str)}
    return {}
