"""What an authenticator keeps beside its public attributes, and how it hides what is secret.

A subclass may use any name for attributes of its own, and need not call ``super().__init__()``. So all of
this hangs on a :class:`~aiosfstream._internals.Slot`, and whatever is read by a public name is read with
care.
"""

from __future__ import annotations

import math
import sys
from copy import copy
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._internals import Slot
from .._text import Secret

if sys.version_info >= (3, 11):
    from typing import Self
elif TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "REQUEST_TIMEOUT",
    "STATE",
    "Hidden",
    "Owned",
    "OwnedSlot",
    "State",
    "assign",
    "hidden",
    "hide",
    "is_hidden",
    "read",
    "require",
    "secrets_of",
    "timeout_of",
]

#: Seconds for a token request, so that a stream is back in 15 where the last one was never answered.
REQUEST_TIMEOUT: Final = 14.0
#: The attributes whose values nobody may see.
SECRET_NAMES: Final = ("access_token", "refresh_token", "client_secret", "password")
_MISSING: Final = object()


class Owned:
    """State that a copy of an authenticator does not share with the original.

    :ivar owner: the ``id()`` of the object that it belongs to
    """

    __slots__ = ("owner",)

    def __init__(self) -> None:
        self.owner = 0

    def copied(self) -> Self:
        """Give the state of a copy."""
        return copy(self)


OwnedT = TypeVar("OwnedT", bound=Owned)


class OwnedSlot(Slot[OwnedT]):
    """A slot whose state is copied when its object has been."""

    __slots__ = ()

    def of(self, owner: object) -> OwnedT:
        """Give the state of *owner*.

        :param owner: the object that the state belongs to
        """
        state = super().of(owner)
        if state.owner != id(owner):
            # As copy.copy() has left it. The original was alive then, so it has another id.
            state = state.copied() if state.owner else state
            state.owner = id(owner)
            self.put(owner, state)
        return state


class State(Owned):
    """What an authenticator keeps.

    :ivar login_url: the base of the OAuth endpoints, if one was given
    :ivar token_url: the token URL, if one was assigned
    :ivar values: the values of the hidden attributes, by their names
    :ivar changes: how often an access token was assigned
    :ivar asked: the token URL that the log-in under way has asked, if it has
    :ivar retry_after: seconds that the last answer asked to wait, if it did
    :ivar clock_lag: seconds that the token endpoint's clock is ahead of ours, if it has said so
    :ivar instance_url: the instance of the last log-in
    :ivar other_secrets: what else must not be shown, such as an assertion
    """

    __slots__ = (
        "asked",
        "changes",
        "clock_lag",
        "instance_url",
        "login_url",
        "other_secrets",
        "retry_after",
        "token_url",
        "values",
    )

    def __init__(self) -> None:
        super().__init__()
        self.login_url: str | None = None
        self.token_url: object = None
        self.values: dict[str, object] = {}
        self.changes = 0
        self.asked: str | None = None
        self.retry_after: float | None = None
        self.clock_lag: float | None = None
        self.instance_url: str | None = None
        self.other_secrets: tuple[Secret, ...] = ()

    def copied(self) -> Self:
        """Give the state of a copy."""
        state = copy(self)
        state.values = dict(self.values)
        return state


STATE: Final = OwnedSlot("authenticator", State)


class Hidden:
    """An attribute whose value ``vars()`` does not show, since an error tracker would.

    :param default: its value before one is assigned; without it there is none
    """

    __slots__ = ("_default", "_name")

    def __init__(self, default: object = _MISSING) -> None:
        self._default = default
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        """Take the name that the class gives it."""
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Give the value."""
        if instance is None:
            return self
        attributes = vars(instance)
        if self._name in attributes:
            # As after self.__dict__.update(reply).
            self.__set__(instance, attributes.pop(self._name))
        value = STATE.of(instance).values.get(self._name, self._default)
        if value is _MISSING:
            raise AttributeError(
                f"{type(instance).__name__} has no {self._name} yet; set it before you log in",
                name=self._name,
            )
        return value.reveal() if isinstance(value, Secret) else value

    def __set__(self, instance: object, value: object) -> None:
        """Keep a value."""
        state = STATE.of(instance)
        state.values[self._name] = Secret(value) if isinstance(value, str) else value
        state.changes += self._name == "access_token"

    def __delete__(self, instance: object) -> None:
        """Forget the value."""
        vars(instance).pop(self._name, None)
        STATE.of(instance).values.pop(self._name, None)


def hidden(default: object = _MISSING) -> Any:
    """Make a hidden attribute; to type checkers it is what its annotation says.

    :param default: its value before one is assigned
    """
    return Hidden(default)


def is_hidden(authenticator: object, name: str) -> bool:
    """Say whether an attribute is one of ours, rather than one that a subclass put in its place.

    :param authenticator: the authenticator
    :param name: the attribute's name
    """
    return isinstance(getattr(type(authenticator), name, None), Hidden)


def read(authenticator: object, name: str) -> Any:
    """Give an attribute, or None if there is none or a subclass's own property fails.

    :param authenticator: the authenticator
    :param name: the attribute's name
    """
    try:
        return getattr(authenticator, name, None)
    except Exception:  # noqa: BLE001 - whatever a property of the application's raises
        return None


def assign(authenticator: object, name: str, value: object) -> None:
    """Assign an attribute, unless a subclass has made a read-only one of it.

    :param authenticator: the authenticator
    :param name: the attribute's name
    :param value: its value
    """
    try:
        setattr(authenticator, name, value)
    except AttributeError:
        return


def secrets_of(authenticator: object) -> tuple[Secret, ...]:
    """Give what must not be shown, whatever a server or a library says.

    :param authenticator: the authenticator
    """
    values = (read(authenticator, name) for name in SECRET_NAMES)
    known = tuple(Secret(value) for value in values if isinstance(value, str) and value)
    return known + STATE.of(authenticator).other_secrets


def hide(authenticator: object, *secrets: Secret) -> None:
    """Let errors not show what an authenticator sends besides its attributes.

    :param authenticator: the authenticator
    :param secrets: what it sends, in place of what it sent before
    """
    STATE.of(authenticator).other_secrets = secrets


def timeout_of(authenticator: object) -> float:
    """Give the seconds that a token request may take.

    A program written for an earlier release may use the name for something else: then it is the default.

    :param authenticator: the authenticator
    """
    value = read(authenticator, "request_timeout")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return REQUEST_TIMEOUT
    return float(value) if math.isfinite(value) and value > 0 else REQUEST_TIMEOUT


def require(**values: str | Secret) -> None:
    """Refuse what was left out, before anything is sent.

    :param values: the values by the names of their parameters
    :raises TypeError: if a value is no text
    :raises ValueError: if it is empty
    """
    for name, value in values.items():
        kind, is_empty = _kind_of(value)
        if kind is not str:
            # Nothing that might be a secret is in this frame but what hides it.
            del value
            raise TypeError(f"{name} should be a str, and it is of the type {kind.__name__!r}")
        if is_empty:
            raise ValueError(f"{name} should not be empty: set it, nobody can log in without")


def _kind_of(value: str | Secret) -> tuple[type, bool]:
    plain: object = value.reveal() if isinstance(value, Secret) else value
    if not isinstance(plain, str):
        return type(plain), False
    return str, not plain.strip()
