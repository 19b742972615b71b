"""Where the package keeps its own state on objects whose classes users derive from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["Slot"]

StateT = TypeVar("StateT")


class Slot(Generic[StateT]):
    """One kind of state that a module keeps on objects of a public class.

    A subclass may use any name for attributes and methods of its own, and need not call
    ``super().__init__()``. So the state hangs on an attribute whose name is no identifier: no class
    can have it by accident. It is made when it is first asked for.

    :param name: tells this state from that of other modules
    :param make: makes the state of an object
    """

    def __init__(self, name: str, make: Callable[[], StateT]) -> None:
        self._attribute: Final = f"aiosfstream: {name}"
        self._make = make

    def of(self, owner: object) -> StateT:
        """Give the state of *owner*.

        :param owner: the object that the state belongs to
        """
        # Not by way of getattr(): a proxy's __getattr__ would give the state of another object.
        try:
            state: StateT = object.__getattribute__(owner, self._attribute)
        except AttributeError:
            state = self._make()
            object.__setattr__(owner, self._attribute, state)
        return state

    def put(self, owner: object, state: StateT) -> None:
        """Replace the state of *owner*.

        :param owner: the object that the state belongs to
        :param state: its new state
        """
        object.__setattr__(owner, self._attribute, state)
