"""What the commands print, and how they refuse what cannot be understood."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["UsageError", "emit", "say"]


class UsageError(Exception):
    """What was asked for cannot be understood; the text says what to do."""


def say(text: str) -> None:
    """Tell the person, apart from the output."""
    print(text, file=sys.stderr, flush=True)


def emit(message: Mapping[str, Any]) -> None:
    """Print an event and let whoever reads it have it at once."""
    print(json.dumps(message), flush=True)
