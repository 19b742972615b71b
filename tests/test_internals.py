"""State of the package on objects of classes that users derive from."""

from __future__ import annotations

from typing import Any

from aiosfstream._internals import Slot


class Owner:
    """An object whose class never calls ``super().__init__()``."""


class Proxy:
    """Gives the attributes of another object."""

    def __init__(self, target: object) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def test_state_is_made_once_for_each_object() -> None:
    slot = Slot("list", list[int])
    one, other = Owner(), Owner()
    slot.of(one).append(1)
    assert slot.of(one) == [1]
    assert slot.of(other) == []


def test_two_kinds_of_state_do_not_meet() -> None:
    first, second = Slot("first", list[int]), Slot("second", list[int])
    owner = Owner()
    first.of(owner).append(1)
    assert second.of(owner) == []


def test_state_can_be_replaced() -> None:
    slot, owner = Slot("number", int), Owner()
    slot.put(owner, 7)
    assert slot.of(owner) == 7


def test_no_class_can_have_the_name_by_accident() -> None:
    slot, owner = Slot("number", int), Owner()
    slot.put(owner, 7)
    assert not any(name.isidentifier() for name in vars(owner))


def test_a_proxy_has_state_of_its_own() -> None:
    slot, owner = Slot("list", list[int]), Owner()
    slot.of(owner).append(1)
    assert slot.of(Proxy(owner)) == []
