"""Which requests meet with which faults."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ._faults import Early, Fault
from ._requests import KINDS, Request

META: Final = tuple(
    f"/meta/{name}" for name in ("handshake", "connect", "subscribe", "unsubscribe", "disconnect")
)


@dataclass(eq=False)
class PlannedFaults:
    """Faults that are to be met together, as :meth:`StreamingServer.add_fault` planned them.

    :ivar faults: what goes wrong
    :ivar met: how many requests have met them
    """

    faults: tuple[Fault, ...]
    on: str | None = field(repr=False)
    when: Callable[[Request], object] | None = field(repr=False)
    answering: Callable[[Any], object] | None = field(repr=False)
    times: int | None
    met: int = 0

    @property
    def is_over(self) -> bool:
        """Whether no more requests will meet them."""
        return self.times is not None and self.met >= self.times

    def matches(self, request: Request) -> bool:
        """Tell whether a request may meet them."""
        return self.on in (None, request.name) and (self.when is None or bool(self.when(request)))


class FaultPlan:
    """The faults that are still to be met."""

    def __init__(self) -> None:
        self._planned: list[PlannedFaults] = []

    def add(self, planned: PlannedFaults) -> None:
        """Plan faults, to be met after those that were planned before."""
        self._planned.append(planned)

    def remove(self, *planned: PlannedFaults) -> None:
        """Forget these; without arguments, all that are planned."""
        self._planned = [one for one in self._planned if planned and one not in planned]

    def take(self, request: Request) -> tuple[Fault, ...]:
        """Give the faults that a request meets."""
        for planned in self._planned:
            if planned.answering is None and planned.matches(request):
                return self._meet(planned)
        return ()

    def take_for_answer(self, request: Request, answer: Any) -> tuple[Fault, ...]:
        """Give the faults that an answer meets which was made for a request."""
        for planned in self._planned:
            if planned.answering is None or not planned.matches(request):
                continue
            if planned.answering(answer):
                return self._meet(planned)
        return ()

    def _meet(self, planned: PlannedFaults) -> tuple[Fault, ...]:
        planned.met += 1
        if planned.is_over:
            self.remove(planned)
        return planned.faults


def check(planned: PlannedFaults) -> PlannedFaults:
    """Give planned faults back.

    :raises TypeError: if something among them is no fault
    :raises ValueError: if no request can meet them
    """
    for fault in planned.faults:
        _check_fault(fault)
        if planned.answering is not None and isinstance(fault, Early):
            raise ValueError(
                f"{type(fault).__name__} is met before there is an answer: add it without answering="
            )
    if not planned.faults:
        raise ValueError("add_fault() needs a fault, such as CutAfter() or Status(503)")
    if planned.times is not None and planned.times < 1:
        raise ValueError(
            f"times should be 1 or more, or None for every request, not {planned.times}"
        )
    if planned.on is not None:
        _check_name(planned.on)
    return planned


def _check_fault(fault: object) -> None:
    if isinstance(fault, type) and issubclass(fault, Fault):
        raise TypeError(
            f"{fault.__name__} is a class: give add_fault() a value, {fault.__name__}()"
        )
    if not isinstance(fault, Fault):
        names = sorted(one.__name__ for one in _all_faults() if one is not Early)
        raise TypeError(
            f"{fault!r} is no fault: use a value of aiosfstream.testing, one of {', '.join(names)}"
        )


def _all_faults() -> list[type[Fault]]:
    return [*Early.__subclasses__(), *Fault.__subclasses__()]


def _check_name(name: str) -> None:
    known = {one.rpartition("/")[2]: one for one in (*META, *KINDS)}
    if name in known.values() or (name.startswith("/") and not name.startswith("/meta")):
        return
    near = difflib.get_close_matches(name.rpartition("/")[2], known, 1)
    hint = f"; did you mean {known[near[0]]!r}?" if near else "."
    raise ValueError(
        f"no request is called {name!r}{hint} Use one of {', '.join(known.values())}, or the channel"
        " that is published on"
    )
