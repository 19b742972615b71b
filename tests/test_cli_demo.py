"""``aiosfstream demo``, as a process of its own."""

from __future__ import annotations

from tests.commands import environment, ids, run


async def test_the_demo() -> None:
    status, lines, told = await run("demo", "--events", "10", env=environment())
    assert status == 0, told
    found = ids(lines)
    assert len(found) == 10
    assert found == sorted(set(found))
    assert "Every event arrived once and in order" in told
    for trouble in ("cut", "forgets", "revoked", "restarts"):
        assert trouble in told
