"""What the distribution says of itself, under the names that programs of earlier releases import."""

from __future__ import annotations

from typing import Final

from . import __version__

__all__ = [
    "AUTHOR",
    "AUTHOR_EMAIL",
    "DESCRIPTION",
    "KEYWORDS",
    "PROJECT_URLS",
    "TITLE",
    "URL",
    "VERSION",
]

TITLE: Final = "aiosfstream"
DESCRIPTION: Final = "Salesforce Streaming API client for asyncio"
KEYWORDS: Final = "salesforce streaming api cometd bayeux asyncio aiohttp change data capture"
URL: Final = "https://aiosfstream.readthedocs.io/"
PROJECT_URLS: Final = {
    "Documentation": URL,
    "Changelog": URL + "en/latest/changelog.html",
}
VERSION: Final = __version__
AUTHOR: Final = "aiosfstream contributors"
#: There is none: the project has an issue tracker.
AUTHOR_EMAIL: Final = ""
