"""What a refusal of the token endpoint means, and what to do about it."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import pytest

from aiosfstream._oauth.advice import advise
from aiosfstream._oauth.answers import wait_of
from tests.oauth import (
    REPLY,
    TOKEN,
    answer,
    endpoint,
    failure,
    password,
    refusal,
)

# What a refusal means


@pytest.mark.parametrize(
    ("error", "description", "advice", "retryable"),
    [
        ("invalid_grant", "authentication failure", "Summer '23", False),
        ("invalid_grant", "expired access/refresh token", "authorize the app again", False),
        ("invalid_grant", "user hasn't approved this consumer", "pre-authorized", False),
        ("invalid_grant", "user hasn\u2019t approved this consumer", "pre-authorized", False),
        ("invalid_grant", "audience is invalid", "audience", False),
        ("invalid_grant", "Audience validation failed", "audience", False),
        ("invalid_grant", "expired authorization code", "clock", False),
        ("invalid_grant", "invalid assertion", "certificate", False),
        ("invalid_grant", "request not supported on this domain", "My Domain", False),
        ("invalid_grant", "no client credentials user enabled", "Run As", False),
        ("invalid_grant", "ip restricted or invalid login hours", "login hours", False),
        ("invalid_grant", "inactive user", "deactivated", False),
        ("invalid_grant", "inactive organization", "locked", False),
        ("invalid_grant", "login rate exceeded", "wait, up to an hour", True),
        ("invalid_grant", "LOGIN_RATE_EXCEEDED", "wait, up to an hour", True),
        ("invalid_grant", "something new", "Check login_url, the app", False),
        ("invalid_client_id", "client identifier invalid", "ten minutes", False),
        ("invalid_client", "invalid client credentials", "consumer secret", False),
        ("invalid_request", "must use HTTP POST", "login_url", False),
        ("unsupported_grant_type", "grant type not supported", "not offered", False),
        ("invalid_scope", "", '"Manage user data via APIs (api)"', False),
        ("invalid_app_access", "", "access to the app", False),
        ("app_blocked", "", "unblock", False),
        ("app_not_found", "", "Install the app", False),
        ("oauth_flow_disabled", "", "Enable the flow", False),
        ("oauth_policy_not_found", "", "Install the app", False),
        ("inactive_user", "", "deactivated", False),
        ("inactive_org", "", "locked", False),
        ("rate_limit_exceeded", "", "wait, up to an hour", True),
        ("server_error", "", "try again later", True),
        ("service_unavailable", "", "try again later", True),
        ("system_down", "", "try again later", True),
        ("slow_down", "", "try again later", True),
        ("unknown_error", "", "try again later", True),
        (
            "",
            "failed to authenticate the integration, please generate a key",
            "Check login_url, the app",
            False,
        ),
    ],
)
async def test_a_refusal_says_what_to_do(
    error: str, description: str, advice: str, retryable: bool
) -> None:
    sentence, again = advise(error, description, 400)
    assert advice in sentence
    assert advice
    assert again is retryable
    async with endpoint(refusal(error, description)) as served:
        refused = await failure(password(served.url))
    assert str(refused).startswith("Authentication failed")
    assert sentence in str(refused)
    assert error in str(refused)
    assert description in str(refused)
    assert (refused.error, refused.error_description) == (error or None, description or None)
    assert refused.status == 400
    assert refused.retryable is retryable


def test_a_status_may_say_more_than_the_words() -> None:
    assert advise("", "", 429) == ("Try again later.", True)
    assert advise("", "", 408) == ("Try again later.", True)
    assert advise("", "", 503) == ("Try again later.", True)
    advice, retryable = advise("invalid_grant", "", 401)
    assert advice.startswith("Check login_url")
    assert not retryable


PASSING = [
    ("invalid_grant", "token request is already being processed", 400),
    ("invalid_grant", "Token request is already being processed.", 401),
    ("invalid_grant", "unable to process this now, retry your request", 400),
    ("unknown_code", "Please retry this request", 403),
    ("invalid_grant", "authentication failure", 429),
    ("invalid_client", "invalid client credentials", 429),
    ("invalid_grant", "expired access/refresh token", 503),
    ("", "too many requests", 400),
    ("", "", 425),
]


@pytest.mark.parametrize(("error", "description", "status"), PASSING)
async def test_a_refusal_that_passes_refuses_no_credentials(
    error: str, description: str, status: int
) -> None:
    headers = {"Retry-After": "17"}
    body = {"error": error, "error_description": description}
    async with endpoint(answer(REPLY), answer(body, status, headers)) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        told = await failure(authenticator)
    assert told.retryable
    assert told.retry_after == 17
    assert authenticator.access_token == TOKEN
    assert "again" in str(told) or "wait" in str(told)
    assert "Check the" not in str(told)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", 0, 0),
        ("120", 120, 120),
        ("3600", 3600, 3600),
        ("3601", 3600, 3600),
        ("9" * 5000, 3600, 3600),
        (100.0, 90, 101),
        (-100.0, 0, 0),
        (1e6, 3600, 3600),
    ],
)
@pytest.mark.parametrize("is_json", [True, False])
async def test_how_long_to_wait_is_said(
    value: str | float, least: float, most: float, is_json: bool
) -> None:
    if isinstance(value, float):
        value = email.utils.formatdate(time.time() + value, usegmt=True)
    body: Any = {"error": "slow_down"} if is_json else b"come back later"
    async with endpoint(answer(body, 503, {"Retry-After": value})) as served:
        told = await failure(password(served.url))
    assert told.retry_after is not None
    assert least <= told.retry_after <= most
    assert told.retryable


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "\u0663", "1e3", "Fri, 99 Foo 0000"])
async def test_nonsense_is_no_time_to_wait(value: str) -> None:
    assert wait_of(value) is None


async def test_without_the_header_nothing_is_said_and_nothing_kept() -> None:
    busy = answer({"error": "slow_down"}, 429, {"Retry-After": "5"})
    async with endpoint(busy, refusal("slow_down", "", 429)) as served:
        authenticator = password(served.url)
        assert (await failure(authenticator)).retry_after == 5
        assert (await failure(authenticator)).retry_after is None
