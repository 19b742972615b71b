"""A storage of two methods, and the test that says whether it is sound."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from aiosfstream import ReplayMarker, ReplayMarkerStorage
from aiosfstream.testing import check_marker_storage


class JsonFile(ReplayMarkerStorage):
    """Keeps the markers in a file that people can read and edit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}

    def write(self, markers: dict[str, Any]) -> None:
        # Replace the file in one step, so that a crash leaves the old or the new one.
        # It is for this user alone, and no link is followed.
        draft = self.path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        with open(draft, "x", encoding="utf-8", opener=private) as file:
            json.dump(markers, file)
        draft.replace(self.path)

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        stored = self.read().get(subscription)
        return None if stored is None else ReplayMarker(*stored)

    async def set_replay_marker(
        self, subscription: str, replay_marker: ReplayMarker
    ) -> None:
        self.write({**self.read(), subscription: replay_marker})


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def test_my_storage(tmp_path: Path) -> None:
    asyncio.run(check_marker_storage(lambda: JsonFile(tmp_path / "markers.json")))
