"""Every event exactly once and in order per channel, through random faults."""

from __future__ import annotations

import os

import pytest

from tests import chaos

#: More of them by ``AIOSFSTREAM_CHAOS_RUNS=500 python -m pytest tests/test_chaos.py``.
RUNS = int(os.environ.get("AIOSFSTREAM_CHAOS_RUNS", "60"))


@pytest.mark.parametrize("seed", range(RUNS))
async def test_our_server(seed: int) -> None:
    await chaos.check(seed)


@pytest.mark.parametrize("seed", range(max(1, RUNS // 10)))
async def test_the_cometd_projects_server(seed: int) -> None:
    await chaos.check(seed, "node", 500)
