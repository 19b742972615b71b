"""Login URLs, and where a token or a password may be sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream import (
    ClientCredentialsAuthenticator,
)
from aiosfstream._oauth.urls import (
    audience_of,
    host_is_allowed,
    host_of,
    is_loopback,
    is_secure,
    normalize_login_url,
)
from aiosfstream.auth import SANDBOX_TOKEN_URL, TOKEN_URL
from tests.oauth import (
    KEY,
    SECRET,
    Mine,
    bearer,
    password,
    refreshing,
)

# Where to log in


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.my.salesforce.com", "https://example.my.salesforce.com"),
        ("https://example.my.salesforce.com/", "https://example.my.salesforce.com"),
        ("example.my.salesforce.com", "https://example.my.salesforce.com"),
        ("  Example.My.Salesforce.com/ \n", "https://example.my.salesforce.com"),
        ("HTTPS://EXAMPLE.my.salesforce.com", "https://example.my.salesforce.com"),
        ("a--b.sandbox.my.salesforce.com", "https://a--b.sandbox.my.salesforce.com"),
        ("a.my.site.com/Partners/", "https://a.my.site.com/Partners"),
        ("https://a.my.site.com//", "https://a.my.site.com"),
        ("https://login.example.com:8443/x/y", "https://login.example.com:8443/x/y"),
        ("https://a.my.salesforce.com/services/oauth2/token", "https://a.my.salesforce.com"),
        ("a.my.salesforce.com/services/oauth2/authorize/", "https://a.my.salesforce.com"),
        ("a.my.site.com/x/services/oauth2/token", "https://a.my.site.com/x"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
        ("http://[::1]:99", "http://[::1]:99"),
        ("localhost:8080", "https://localhost:8080"),
    ],
)
def test_a_login_url_is_understood_in_every_form(url: str, expected: str) -> None:
    assert normalize_login_url(url) == expected
    assert password(url)._token_url == f"{expected}/services/oauth2/token"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "should be a host or a URL"),
        ("   ", "should be a host or a URL"),
        ("https://", "should be a host or a URL"),
        ("/services", "should be a host or a URL"),
        ("https://my domain.com", "should be a host or a URL"),
        ("https://exämple.com", "should be a host or a URL"),
        ("https://a.com\r\nX: y", "should be a host or a URL"),
        ("https://a.com:port", "should be a host or a URL"),
        ("https://a.com:99999", "should be a host or a URL"),
        ("https://[::1", "should be a host or a URL"),
        ("javascript:alert(1)", "should be a host or a URL"),
        (None, "should be a host or a URL"),
        (b"a.my.salesforce.com", "should be a host or a URL"),
        (["a.my.salesforce.com"], "should be a host or a URL"),
        ("http://a.my.salesforce.com", "https URL"),
        ("http://127.0.0.1.example.com", "https URL"),
        ("http://localhost.example.com", "https URL"),
        ("ftp://a.my.salesforce.com", "https URL"),
        ("https://a.com?x=1", "no user, no query"),
        ("https://a.com/#x", "no user, no query"),
        ("https://user@a.com", "no user, no query"),
        ("https://good.com\\@evil.com", "no user, no query"),
        ("https://a.lightning.force.com", r"use a\.my\.salesforce\.com"),
        ("a--b.sandbox.lightning.force.com/x", r"use a--b\.sandbox\.my\.salesforce\.com"),
        ("https://a.my.salesforce-setup.com", r"use a\.my\.salesforce\.com"),
        ("A.Salesforce-Setup.com", r"use a\.my\.salesforce\.com"),
    ],
)
def test_a_login_url_that_cannot_be_right_is_refused(url: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        normalize_login_url(url)


def test_a_password_in_a_login_url_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="login_url should") as caught:
        password("https://user:hidden-password@a.my.salesforce.com")
    assert "hidden" not in str(caught.value)


@given(st.text(max_size=40))
def test_a_login_url_is_either_secure_or_refused(text: str) -> None:
    try:
        url = normalize_login_url(text)
    except ValueError:
        return
    assert is_secure(url)
    assert not url.endswith("/")
    assert "@" not in url


def test_production_and_sandbox_have_hosts_of_their_own() -> None:
    assert TOKEN_URL == "https://login.salesforce.com/services/oauth2/token"
    assert SANDBOX_TOKEN_URL == "https://test.salesforce.com/services/oauth2/token"
    assert password()._token_url == TOKEN_URL
    assert password(sandbox=True)._token_url == SANDBOX_TOKEN_URL
    assert refreshing(sandbox=True)._token_url == SANDBOX_TOKEN_URL
    assert bearer(sandbox=True)._token_url == SANDBOX_TOKEN_URL
    assert Mine(None, sandbox=True)._token_url == SANDBOX_TOKEN_URL


@pytest.mark.parametrize("url", ["login.salesforce.com", "https://test.salesforce.com/"])
def test_client_credentials_need_a_my_domain(url: str) -> None:
    with pytest.raises(ValueError, match="My Domain"):
        ClientCredentialsAuthenticator(KEY, SECRET, login_url=url)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("128.0.0.1", False),
        ("::2", False),
        ("localhost.example", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("login_url", "sandbox", "expected"),
    [
        ("https://login.salesforce.com", False, "https://login.salesforce.com"),
        ("https://test.salesforce.com", False, "https://test.salesforce.com"),
        ("https://a.my.salesforce.com", False, "https://login.salesforce.com"),
        ("https://a.my.salesforce.com", True, "https://test.salesforce.com"),
        ("https://a.develop.my.salesforce.com", False, "https://login.salesforce.com"),
        ("https://test.my.salesforce.com", False, "https://login.salesforce.com"),
        ("https://sandbox.my.salesforce.com", False, "https://login.salesforce.com"),
        ("https://a--b.sandbox.my.salesforce.com", False, "https://test.salesforce.com"),
        ("https://a--b.my.salesforce.com", False, "https://test.salesforce.com"),
        ("https://a.scratch.my.salesforce.com", False, "https://test.salesforce.com"),
        ("https://a.my.site.com", False, "https://a.my.site.com"),
        ("https://a.my.site.com/partners", False, "https://a.my.site.com/partners"),
        ("https://a--b.sandbox.my.site.com", True, "https://a--b.sandbox.my.site.com"),
        ("https://a.force.com/x", False, "https://a.force.com/x"),
        ("https://members.example.com", False, "https://members.example.com"),
        ("http://127.0.0.1:8080", False, "https://login.salesforce.com"),
        ("http://localhost:8080", True, "https://test.salesforce.com"),
    ],
)
def test_an_assertion_is_for_the_right_audience(
    login_url: str, sandbox: bool, expected: str
) -> None:
    assert audience_of(login_url, sandbox=sandbox) == expected


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("acme", "https://acme.my.salesforce.com"),
        ("https://acme", "https://acme.my.salesforce.com"),
        ("acme.my", "https://acme.my.salesforce.com"),
        ("https://acme.my/", "https://acme.my.salesforce.com"),
        ("acme--dev.sandbox.my", "https://acme--dev.sandbox.my.salesforce.com"),
        ("acme.my.", "https://acme.my.salesforce.com"),
        ("https://acme.my.:443/", "https://acme.my.salesforce.com"),
        ("acme.lightning.force.com.", "https://acme.my.salesforce.com"),
        ("ACME.MY", "https://acme.my.salesforce.com"),
        ("acme.my.salesforce", "https://acme.my.salesforce.com"),
        ("login", "https://login.salesforce.com"),
        ("test", "https://test.salesforce.com"),
        ("acme:8443", "https://acme.my.salesforce.com"),
        ("https:/acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("https//acme.my.salesforce.com/", "https://acme.my.salesforce.com"),
        ("https:acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("https;//acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("https:///acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("http:/acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("https://https://acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("HTTPS://https//acme.my.salesforce.com", "https://acme.my.salesforce.com"),
        ("https:/x", "https://x.my.salesforce.com"),
        ("https//x", "https://x.my.salesforce.com"),
        ("https:/acme.my", "https://acme.my.salesforce.com"),
        ("https:/acme.my.site.com/partners", "https://acme.my.site.com/partners"),
    ],
)
def test_what_was_probably_meant_is_named(url: str, meant: str) -> None:
    with pytest.raises(ValueError, match="login_url should") as caught:
        normalize_login_url(url)
    assert f"'{meant}'" in str(caught.value)
    with pytest.raises(ValueError, match="login_url"):
        password(url)
    # And that is right.
    assert normalize_login_url(meant) == meant


@pytest.mark.parametrize(
    "url",
    [
        "https",
        "http",
        "https:/",
        "https:///",
        "https://https",
        "https:443",
        "://acme.my.salesforce.com",
    ],
)
def test_what_may_mean_anything_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="should"):
        normalize_login_url(url)


@pytest.mark.parametrize(
    "host", ["localhost", "orders.localhost", "127.0.0.1", "[::1]", "10.0.0.1", "[fe80::1]", "a.b"]
)
def test_a_host_without_a_name_of_its_own_is_taken(host: str) -> None:
    assert normalize_login_url(f"https://{host}:1") == f"https://{host}:1"


def test_a_password_is_not_repeated_by_a_guess() -> None:
    for url in ("https:/me:hidden@a.b", "https//me:hidden@a.b", "https:///me:hidden@a.b"):
        with pytest.raises(ValueError, match="should") as caught:
            normalize_login_url(url)
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "allowed", "expected"),
    [
        ("https://a.my.salesforce.com", None, True),
        ("https://a.my.salesforce.com", [], False),
        ("https://a.my.salesforce.com", ["a.my.salesforce.com"], True),
        ("https://A.my.salesforce.com:443/x", {"a.MY.salesforce.com"}, True),
        ("https://a.my.salesforce.com.", ["a.my.salesforce.com"], True),
        ("https://a.my.salesforce.com", ["b.my.salesforce.com"], False),
        ("https://a.my.salesforce.com", [".my.salesforce.com"], True),
        ("https://a.my.salesforce.com", ["*.salesforce.com"], True),
        ("https://salesforce.com", ["*.salesforce.com"], False),
        ("https://evilsalesforce.com", ["*.salesforce.com"], False),
        ("https://a.salesforce.com.evil.example", [".salesforce.com"], False),
        ("https://a.salesforce.com@evil.example", [".salesforce.com"], False),
        ("https://evil.example/a.salesforce.com", [".salesforce.com"], False),
        ("nonsense", ["*"], False),
        ("", [""], False),
    ],
)
def test_a_list_of_hosts(url: str, allowed: Any, expected: bool) -> None:
    assert host_is_allowed(url, allowed) is expected


@pytest.mark.parametrize("url", ["http://[x]@", "http://[", "//", "", "\ud800", "http://a b"])
def test_the_host_of_nonsense_is_unknown(url: str) -> None:
    assert host_of(url) == "unknown"
    assert not is_secure(url)
