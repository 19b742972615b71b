"""What the library says, in the words of the command line.

Its errors name arguments and classes of Python. Who reads them here knows options and environment
variables.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["in_words"]

#: What is replaced, in this order.
_WORDS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        # Credentials
        (
            r"\bsandbox, login_url and audience\b",
            "SALESFORCE_SANDBOX, SALESFORCE_LOGIN_URL and SALESFORCE_AUDIENCE",
        ),
        (r"\blogin_url='([^']*)'", r"SALESFORCE_LOGIN_URL=\1"),
        (r"\bas login_url\b", "as SALESFORCE_LOGIN_URL"),
        (r"\blogin_url\b", "SALESFORCE_LOGIN_URL"),
        (r"\binstance_url(?= should\b)", "SALESFORCE_INSTANCE_URL"),
        (r"\baccess_token(?= should\b)", "SALESFORCE_ACCESS_TOKEN"),
        (r"\bprivate_key(?= should\b)", "SALESFORCE_PRIVATE_KEY or SALESFORCE_PRIVATE_KEY_FILE"),
        (r"\bCheck the username, the password\b", "Check SALESFORCE_USERNAME, SALESFORCE_PASSWORD"),
        (r"\bCheck the consumer key\b", "Check SALESFORCE_CONSUMER_KEY"),
        (r"\bCheck the consumer secret\b", "Check SALESFORCE_CONSUMER_SECRET"),
        (
            r"\bthat consumer key and username are\b",
            "that SALESFORCE_CONSUMER_KEY and SALESFORCE_USERNAME are",
        ),
        (
            r"open a client with a new one, or give AccessTokenAuthenticator an async callable",
            "set SALESFORCE_ACCESS_TOKEN to a new one",
        ),
        (r"\bJWTBearerAuthenticator needs\b", "The JWT bearer flow needs"),
        (
            r"\bon_token_refreshed could not store the new refresh token \(\w+\)",
            "the new refresh token could not be written",
        ),
        # Where a channel starts
        (r"\bor (?:<?ReplayOption\.NEW_EVENTS\b(?:: -1>)?)", "--replay new or --fallback new"),
        (r"<?ReplayOption\.NEW_EVENTS\b(?:: -1>)?", "new"),
        (r"<?ReplayOption\.ALL_EVENTS\b(?:: -2>)?", "all"),
        (r"\bthe fallback -1\b", "--fallback new"),
        (r"\bthe fallback -2\b", "--fallback all"),
        (
            r"\bsubscribe to it again, with a replay option if",
            "start again, with --fallback new or --fallback all if",
        ),
        (
            r"\bsubscribe with a replay id or keep markers to have it",
            "with --state, or CHANNEL@ID, it would be",
        ),
        (
            r", or pass other_org='start-anew' to [a-z ]*, for example after a",
            "; after a",
        ),
        (r"(?<=; after a sandbox was refreshed)(?=\.)", ", begin a new one"),
        # The client
        (r"\bapi_version\b", "--api-version"),
        (r"\bgive a larger max_response_size\b", "that is more than this command takes"),
        (r"\bopen the client again( to go on)?", "start again"),
        (r"; the next receive\(\) gives this message again", "; it comes again at the next start"),
        (r"; receive\(\) raises this[^:]*(?=:)", ""),
        (r", call receive\(\) to try again or learn that it has ended for good", ""),
    )
)


def in_words(text: str) -> str:
    """Say *text* in the words of the command line.

    :param text: an error or a log record of the library
    :return: the same with options and variables in place of Python's names
    """
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    return text
