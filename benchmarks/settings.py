"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    :ivar repeat: how often each client is measured; figures are medians of that
    :ivar events: events that a client drains
    :ivar batches: events in one response
    :ivar growth: numbers of events after which CPU and memory are looked at
    :ivar latency_events: events whose way is timed, one by one
    :ivar latency_period: seconds between two of them
    :ivar clients: clients that one process keeps open
    :ivar crowd_seconds: seconds for which those are watched
    :ivar crowd_hold: seconds after which the server answers a connect without events
    :ivar crowd_repeat: how often that is done
    :ivar markers: markers that are written to each storage
    :ivar blocks: events in one answer, of which the longest turn of the event loop is measured
    :ivar imports: how often each import is timed
    """

    repeat: int = 5
    events: int = 20_000
    batches: tuple[int, ...] = (200, 10)
    growth: tuple[int, ...] = (10_000, 100_000, 500_000, 1_000_000, 2_000_000)
    latency_events: int = 2_000
    latency_period: float = 0.005
    clients: int = 1_000
    crowd_seconds: float = 20.0
    crowd_hold: float = 5.0
    crowd_repeat: int = 5
    markers: int = 20_000
    blocks: tuple[int, ...] = (10_000, 150_000)
    imports: int = 15


FULL: Final = Settings()
QUICK: Final = Settings(
    repeat=1,
    events=4_000,
    growth=(2_000, 4_000, 10_000),
    latency_events=200,
    clients=50,
    crowd_seconds=1.0,
    crowd_hold=0.5,
    crowd_repeat=1,
    markers=1_000,
    blocks=(2_000,),
    imports=3,
)
