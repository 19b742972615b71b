"""The pytest plugin of aiosfstream: the fixture ``salesforce_server``.

Pytest loads it wherever the package is installed. So it stands outside of the package and imports
nothing before a test asks for the fixture: what a suite does not use costs it nothing, and a
dependency that is broken breaks only the tests that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiosfstream.testing import StreamingServer


@pytest.fixture
def salesforce_server_options() -> dict[str, Any]:
    """Give the arguments of ``salesforce_server``; override it to have others than the defaults."""
    return {}


@pytest.fixture
def salesforce_server(salesforce_server_options: dict[str, Any]) -> Iterator[StreamingServer]:
    """Give a Salesforce-like org on loopback, new for each test.

    It runs in a thread of its own, so it serves synchronous tests and those of any asyncio plugin
    alike. What fails in it fails the test.
    """
    from aiosfstream.testing import serve_in_thread

    with serve_in_thread(**salesforce_server_options) as server:
        yield server
