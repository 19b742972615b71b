"""One timer for all requests of a task."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import pytest

from aiosfstream._http.deadline import Deadline


class Timer:
    """A timer of :class:`Loop`."""

    def __init__(self, end: float, callback: Any) -> None:
        self.end = end
        self.callback = callback
        self.cancelled = False

    def when(self) -> float:
        """Give the time of it."""
        return self.end

    def cancel(self) -> None:
        """Do not ring."""
        self.cancelled = True


class Loop:
    """The clock and the timers of an event loop, moved by hand; counts the timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        """Give the time."""
        return self.now

    def call_at(self, when: float, callback: Any) -> Timer:
        """Set a timer."""
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def wait(self, seconds: float) -> None:
        """Let time pass and timers ring."""
        end = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.end <= end]:
            timer = min(due, key=Timer.when)
            timer.cancelled, self.now = True, timer.end
            timer.callback()
        self.now = end

    @property
    def waiting(self) -> int:
        """The number of timers that have not rung."""
        return sum(not timer.cancelled for timer in self.timers)


class Task:
    """What is cancelled."""

    cancelled = 0
    taken_back = 0

    def cancel(self) -> None:
        """Count."""
        self.cancelled += 1

    def cancelling(self) -> int:
        """Give how many are in force."""
        return self.cancelled - self.taken_back

    def uncancel(self) -> int:
        """Count one less."""
        self.taken_back += 1
        return self.cancelling()


class Case:
    """A deadline with its clock and its task."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.task = Task()
        self.deadline = Deadline(cast(asyncio.AbstractEventLoop, self.loop))

    def start(self, silence: float, total: float) -> None:
        """Begin to count."""
        self.deadline.prepare(cast("asyncio.Task[None]", self.task), silence, total)
        self.deadline.start()


@pytest.fixture
def case() -> Case:
    """A deadline at the beginning."""
    return Case()


def test_silence_ends_it(case: Case) -> None:
    case.start(10, 40)
    case.loop.wait(9.9)
    assert (case.task.cancelled, case.deadline.passed) == (0, False)
    case.loop.wait(0.2)
    assert (case.task.cancelled, case.deadline.passed) == (1, True)
    case.loop.wait(1000)
    assert case.task.cancelled == 1


def test_what_comes_extends_it_but_not_for_ever(case: Case) -> None:
    case.start(10, 40)
    for _ in range(4):
        case.loop.wait(9)
        case.deadline.extend()
    assert case.task.cancelled == 0
    case.loop.wait(3.9)
    assert case.task.cancelled == 0
    case.loop.wait(0.2)
    assert case.task.cancelled == 1


def test_an_answer_ends_the_count(case: Case) -> None:
    case.start(10, 40)
    case.deadline.stop()
    case.loop.wait(1000)
    assert (case.task.cancelled, case.deadline.passed) == (0, False)
    assert case.loop.waiting == 0


def test_a_request_takes_up_the_count_anew(case: Case) -> None:
    case.start(10, 40)
    case.loop.wait(11)
    assert case.deadline.passed
    case.start(10, 40)
    assert not case.deadline.passed
    case.loop.wait(9)
    assert case.task.cancelled == 1
    case.loop.wait(2)
    assert case.task.cancelled == 2


def test_requests_share_a_timer(case: Case) -> None:
    for _ in range(1000):
        case.start(125, 170)
        case.loop.wait(0.1)
        case.deadline.stop()
    assert len(case.loop.timers) == 1
    case.start(125, 170)
    case.loop.wait(124)
    assert case.task.cancelled == 0
    assert case.loop.waiting == 1
    case.loop.wait(2)
    assert case.task.cancelled == 1


def test_a_shorter_time_is_kept(case: Case) -> None:
    case.start(125, 170)
    case.deadline.stop()
    case.start(5, 20)
    assert case.loop.waiting == 1
    case.loop.wait(5.1)
    assert case.task.cancelled == 1


def test_closing_lets_go_of_the_timer(case: Case) -> None:
    case.start(10, 40)
    case.deadline.close()
    assert case.loop.waiting == 0
    case.loop.wait(100)
    assert case.task.cancelled == 0
    case.deadline.close()


def test_one_for_a_single_request_keeps_no_timer(case: Case) -> None:
    once = Deadline(cast(asyncio.AbstractEventLoop, case.loop), once=True)
    once.prepare(cast("asyncio.Task[None]", case.task), 10, 40)
    once.start()
    assert case.loop.waiting == 1
    once.stop()
    assert case.loop.waiting == 0


def test_only_its_own_cancellation_is_taken_back(case: Case) -> None:
    case.start(10, 40)
    case.task.cancel()
    assert not case.deadline.take_back()
    assert case.task.taken_back == 0


def test_a_task_that_was_cancelled_before_goes_on(case: Case) -> None:
    case.task.cancel()
    case.start(10, 40)
    case.loop.wait(11)
    assert case.deadline.take_back()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations")
def test_a_cancellation_at_the_same_time_stays(case: Case) -> None:
    case.start(10, 40)
    case.loop.wait(11)
    case.task.cancel()
    assert not case.deadline.take_back()
    assert case.task.cancelling() == 1
