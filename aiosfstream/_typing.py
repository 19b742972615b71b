"""What the oldest supported Python lacks of ``typing``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    # Every type checker knows this one, installed or not.
    from typing_extensions import Unpack
else:

    class Unpack:
        """Lets ``typing.get_type_hints()``, which evaluates annotations, find something."""

        def __class_getitem__(cls, options: object) -> object:
            """Give the options as they are."""
            return options


__all__ = ["Unpack"]
