"""Which requests meet with which faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ._faults import Fault
from ._requests import Request


@dataclass
class Planned:
    """Faults that are to be met together.

    :ivar faults: what goes wrong
    :ivar on: the requests that meet them, as :attr:`Request.name` gives them; None: any
    :ivar when: says whether a request meets them
    :ivar times: how many requests are still to meet them
    """

    faults: tuple[Fault, ...]
    on: str | None
    when: Callable[[Request], bool] | None
    times: int


class FaultPlan:
    """The faults that have not been met yet."""

    def __init__(self) -> None:
        self._planned: list[Planned] = []

    def add(self, planned: Planned) -> None:
        """Plan faults, to be met after those that were planned before."""
        self._planned.append(planned)

    def clear(self) -> None:
        """Forget what is planned."""
        self._planned.clear()

    def take(self, request: Request) -> tuple[Fault, ...]:
        """Give the faults that a request meets."""
        for planned in self._planned:
            if planned.on not in (None, request.name):
                continue
            if planned.when is not None and not planned.when(request):
                continue
            planned.times -= 1
            if planned.times <= 0:
                self._planned.remove(planned)
            return planned.faults
        return ()
