"""The CometD project's own server as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.interop.harness import NodeProcess, NodeServer


@pytest.fixture(scope="session")
def node_process() -> Iterator[NodeProcess]:
    """One process for all tests."""
    with NodeProcess() as process:
        yield process


@pytest.fixture
async def node(node_process: NodeProcess) -> AsyncIterator[NodeServer]:
    """The server in its first state, checked at the end."""
    async with NodeServer(node_process) as server:
        yield server
        await server.check()
