"""Warnings that are given once."""

from __future__ import annotations

from typing import Final

#: Names that are warned of at most: a server could make up names without end, and fill the log.
MAX_NAMES: Final = 100


class Once:
    """Remembers a limited number of names, so that each is warned of once."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def is_new(self, name: object) -> bool:
        """Say whether *name* should be warned of.

        :param name: what the warning is about
        """
        text = f"{name!r:.100}"
        if text in self._names or len(self._names) >= MAX_NAMES:
            return False
        self._names.append(text)
        return True
