"""How long to wait before another attempt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.retry import Delays, RetryPolicy

POLICY = RetryPolicy()


def delays(seed: int = 7, policy: RetryPolicy = POLICY) -> Delays:
    """Make delays."""
    return Delays(policy, random.Random(seed))


class AtTheBound(random.Random):
    """Gives the longest delay each time."""

    def uniform(self, a: float, b: float) -> float:
        """Give the upper bound."""
        assert a == 0.0
        return b


def test_bounds_double_up_to_their_caps() -> None:
    of_network = Delays(POLICY, AtTheBound())
    assert [of_network.network("x") for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    of_server = Delays(POLICY, AtTheBound())
    assert [of_server.busy("x") for _ in range(7)] == [10, 20, 40, 80, 160, 300, 300]
    first = Delays(POLICY, AtTheBound())
    assert [first.first_at_once("x") for _ in range(4)] == [0, 2, 4, 8]
    assert [delays().refused(times) for times in (1, 2, 3, 8, 9, 5000)] == [
        5,
        10,
        20,
        640,
        900,
        900,
    ]


def test_jitter_is_full() -> None:
    kind = delays()
    late = [kind.network("x") for _ in range(2000)][5:]
    assert min(late) < 0.1
    assert max(late) > 9.9
    assert 4.5 < sum(late) / len(late) < 5.5


def test_each_kind_of_trouble_counts_by_itself() -> None:
    both = Delays(POLICY, AtTheBound())
    for _ in range(5):
        both.network("x")
    assert both.first_at_once("y") == 0.0
    assert both.network("z") == 1.0
    assert both.busy("busy") == 10.0
    assert both.network("x") == 10.0
    assert both.attempts == 9


def test_success_makes_all_forgotten() -> None:
    kind = Delays(POLICY, AtTheBound())
    for _ in range(5):
        kind.network("x")
        kind.busy("y")
    kind.reset()
    assert kind.attempts == 0
    assert kind.network("x") == 1.0
    assert kind.busy("y") == 10.0
    assert kind.first_at_once("z") == 0.0


def test_a_stream_is_soon_back_after_trouble_with_the_network() -> None:
    assert POLICY.cap <= 15.0
    assert POLICY.initial <= POLICY.cap
    assert POLICY.busy_initial <= POLICY.busy_cap


@given(st.floats(0.001, 1e3), st.floats(1.0, 1e6), st.integers(0, 3000), st.integers())
def test_no_delay_is_beyond_its_cap(
    initial: float, factor: float, attempts: int, seed: int
) -> None:
    cap = initial * factor
    policy = RetryPolicy(initial=initial, cap=cap, busy_initial=initial, busy_cap=cap)
    kind = delays(seed, policy)
    for _ in range(attempts % 60):
        assert 0.0 <= kind.network("x") <= cap
        assert 0.0 <= kind.busy("x") <= cap


def test_a_bound_of_very_many_failures_is_a_number() -> None:
    kind = delays()
    assert all(0.0 <= kind.busy("x") <= POLICY.busy_cap for _ in range(3000))


@pytest.mark.parametrize("seeds", [range(1000)])
def test_the_delays_of_many_clients_are_spread(seeds: range) -> None:
    first = [delays(seed).busy("x") for seed in seeds]
    in_each_second = [sum(second <= delay < second + 1 for delay in first) for second in range(10)]
    assert min(in_each_second) > 60
    assert max(in_each_second) < 150
