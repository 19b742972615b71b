"""Every event exactly once and in order per channel, through random faults."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests import chaos

#: More of them by ``AIOSFSTREAM_CHAOS_RUNS=500 python -m pytest tests/test_chaos.py``.
RUNS = int(os.environ.get("AIOSFSTREAM_CHAOS_RUNS", "60"))
#: Runs side by side: each spends most of its time waiting.
TOGETHER = 4


@pytest.mark.parametrize("first", range(0, RUNS, TOGETHER))
async def test_our_server(first: int) -> None:
    seeds = range(first, min(first + TOGETHER, RUNS))
    outcomes = await asyncio.gather(*map(chaos.check, seeds), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.parametrize("seed", range(max(1, RUNS // 10)))
async def test_the_cometd_projects_server(seed: int) -> None:
    await chaos.check(seed, "node", 500)
