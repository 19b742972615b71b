"""What a refusal of the token endpoint means, and what to do about it."""

from __future__ import annotations

import pytest

from aiosfstream._oauth.advice import advise
from tests.oauth import (
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
