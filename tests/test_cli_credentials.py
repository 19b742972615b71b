"""Which credentials of the environment are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiosfstream._cli.console import UsageError
from aiosfstream._cli.credentials import Credentials, authenticator_from


def test_the_flow_is_chosen_by_the_environment(tmp_path: Path) -> None:
    key, secret = {"SALESFORCE_CONSUMER_KEY": "k"}, {"SALESFORCE_CONSUMER_SECRET": "s"}
    url = {"SALESFORCE_LOGIN_URL": "x.my.salesforce.com"}
    user = {"SALESFORCE_USERNAME": "u"}
    flows: list[tuple[dict[str, str], str]] = [
        ({"SALESFORCE_ACCESS_TOKEN": "t", "SALESFORCE_INSTANCE_URL": "https://x"}, "AccessToken"),
        (key | {"SALESFORCE_REFRESH_TOKEN": "r"}, "RefreshToken"),
        (key | secret | user | {"SALESFORCE_PASSWORD": "p"}, "Password"),
        (key | secret | url, "ClientCredentials"),
    ]
    for variables, name in flows:
        assert (
            type(authenticator_from(Credentials(variables))[1]).__name__ == f"{name}Authenticator"
        )
    sandbox = key | secret | user | {"SALESFORCE_PASSWORD": "p", "SALESFORCE_SANDBOX": "1"}
    assert "test.salesforce.com" in repr(authenticator_from(Credentials(sandbox))[1])
    with pytest.raises(UsageError):
        authenticator_from(Credentials(key))
