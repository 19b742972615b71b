"""What to do about the refusals of a token endpoint."""

from __future__ import annotations

import re
from typing import Final

#: What to do about errors that pass, by the token endpoint's code.
_TEMPORARY: Final = {
    "rate_limit_exceeded": "There were too many log-ins (Salesforce allows 3,600 an hour and user):"
    " wait, up to an hour.",
    "server_error": "Salesforce has a problem: try again later.",
    "service_unavailable": "Salesforce is not available: try again later.",
    "system_down": "Salesforce is down: try again later.",
    "slow_down": "There were too many requests: try again later.",
    "unknown_error": "Salesforce does not say why: try again later.",
}

#: Explanations of refusals that pass, whichever code comes with them.
_PASSING: Final = (
    (
        r"(?<![a-z])rate(?![a-z])|too many (requests|log-?ins)",
        _TEMPORARY["rate_limit_exceeded"],
    ),
    (
        r"already being processed|(retry|repeat) (your|the|this) request|(try|retry) again later|retry later",
        "Salesforce was busy with another log-in of this user or app: try again.",
    ),
)
#: Statuses that pass, whatever the answer says.
_PASSING_STATUSES: Final = (408, 425, 429)

#: What to do about errors that stay, by the token endpoint's explanation: the first that fits.
_ADVICE: Final = (
    (
        r"authentication failure",
        "Check the username, the password followed by the security token, and that it is the right org:"
        " a sandbox logs in at test.salesforce.com or its own My Domain. Orgs created in Summer '23 or later"
        " block the username-password flow: use another flow, or allow it in Setup > OAuth and OpenID Connect"
        " Settings. The user's Login History has the true reason.",
    ),
    (
        r"ip restricted|login hours",
        "The user may not log in from this address or at this time: check the login IP ranges and login hours"
        " of the user's profile, and the app's IP relaxation policy.",
    ),
    (
        r"expired access/refresh token",
        "The refresh token has expired, was revoked or was replaced by a newer one. A user can approve an"
        " app five times; a sixth approval ends the first. To authorize the app again, use aiosfstream login.",
    ),
    (
        r"hasn.t approved|not approved|user is not admin approved",
        'Pre-authorize the user: in the app\'s policies choose "Admin approved users are pre-authorized" and'
        " add a profile or permission set of the user.",
    ),
    (
        r"audience",
        "The assertion's audience should be https://login.salesforce.com, https://test.salesforce.com for a"
        " sandbox, or the Experience Cloud site's URL: check sandbox, login_url and audience.",
    ),
    (
        r"expired authorization code",
        "The assertion or code had expired when it arrived: check this machine's clock.",
    ),
    (
        r"invalid assertion|signature",
        "Check that the private key belongs to the certificate that was uploaded to the app, and that"
        " consumer key and username are right.",
    ),
    (
        r"not supported on this domain",
        "This flow needs the org's My Domain: login_url='https://MyDomainName.my.salesforce.com'.",
    ),
    (
        r"no client credentials user",
        'Choose the user that the client credentials flow runs as ("Run As") in the app\'s policies.',
    ),
    (
        r"inactive user|user is inactive",
        "The user is deactivated or frozen: an administrator can activate it.",
    ),
    (
        r"inactive org",
        "The org is locked, closed or suspended: ask Salesforce.",
    ),
)

#: What to do about errors that stay and have no telling explanation, by the token endpoint's code.
_ADVICE_BY_CODE: Final = {
    "invalid_client_id": "Check the consumer key, and that it is the app's org; a new app may need ten minutes"
    " to become known.",
    "invalid_client": "Check the consumer secret; a new app may need ten minutes to become known.",
    "invalid_client_credentials": "Check the consumer secret.",
    "invalid_request": "Check login_url: the token endpoint did not understand the request.",
    "unsupported_grant_type": "Check login_url and the app: this flow is not offered there.",
    "invalid_scope": 'Add the scope "Manage user data via APIs (api)" to the app.',
    "invalid_app_access": "Give the user access to the app, in its policies.",
    "app_blocked": "An administrator has blocked the app in this org and can unblock it.",
    "app_not_found": "Install the app in this org.",
    "oauth_flow_disabled": "Enable the flow in the app's settings, or in Setup > OAuth and OpenID Connect"
    " Settings.",
    "oauth_policy_not_found": "Install the app in this org: it has no OAuth policies there.",
    "inactive_user": "The user is deactivated or frozen: an administrator can activate it.",
    "inactive_org": "The org is locked, closed or suspended: ask Salesforce.",
    "access_denied": "The user did not allow it, or may not use the app.",
    "redirect_uri_mismatch": "Add the redirect's URL to the app's callback URLs, letter by letter.",
}


_LOOK_IT_UP: Final = (
    'Check login_url, the app and the user; Salesforce Help explains the codes under "OAuth 2.0'
    ' Authorization Errors".'
)


def advise(error: str, description: str, status: int) -> tuple[str, bool]:
    """Say what to do about a refusal, and whether trying again later can help.

    The codes are those of Salesforce's token endpoint, the explanations the ones seen with
    ``invalid_grant`` (Salesforce Help, "OAuth 2.0 Authorization Errors", and reports of users).

    :param error: the token endpoint's error code
    :param description: its explanation
    :param status: the HTTP status
    :return: a sentence, and whether the same request may succeed later
    """
    if error in _TEMPORARY:
        return _TEMPORARY[error], True
    said = f"{error} {description}"
    for pattern, advice in _PASSING:
        if re.search(pattern, said, re.I):
            return advice, True
    if status >= 500 or status in _PASSING_STATUSES:
        return "Try again later.", True
    for pattern, advice in _ADVICE:
        if re.search(pattern, description, re.I):
            return advice, False
    return _ADVICE_BY_CODE.get(error, _LOOK_IT_UP), False
