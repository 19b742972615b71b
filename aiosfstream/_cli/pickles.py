"""Reading pickled markers without unpickling anything.

A pickle is a program. This runs the part of it that builds markers and plain values, and refuses the
rest: no class is looked up and nothing is called, so a pickle can change nothing in the process.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Final

from ..replay import ReplayMarker

__all__ = ["MAX_PICKLE", "PickleError", "read_pickle"]

#: Bytes of a pickled marker. A hundred are usual.
MAX_PICKLE: Final = 65536

#: What ``copyreg`` is called since Python 3, and was before.
_COPYREG: Final = ("copyreg", "copy_reg")
#: What ``builtins`` is called since Python 3, and was before.
_BUILTINS: Final = ("builtins", "__builtin__")


class PickleError(ValueError):
    """It is no pickle of markers or plain values; the text says why."""


def read_pickle(content: bytes) -> Any:
    """Give the value in a pickle of any protocol.

    :param content: the pickle
    :return: a :class:`~aiosfstream.ReplayMarker`, or whatever of these, numbers, texts, tuples, lists
        and dicts it was
    :raises PickleError: if it holds anything else, is damaged or longer than :data:`MAX_PICKLE`
    """
    if len(content) > MAX_PICKLE:
        raise PickleError(f"it has {len(content)} bytes, and a marker has at most {MAX_PICKLE}")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.run(opcode.name, argument)
        return machine.result()
    except PickleError:
        raise
    except Exception as error:
        # What a damaged pickle can raise has no bounds.
        raise PickleError(f"it is damaged: {type(error).__name__}: {error!s:.100}") from error


def make_marker(date: Any, replay_id: Any) -> ReplayMarker:
    """Make a marker out of what a pickle gives for one.

    :param date: its date
    :param replay_id: its replay id
    """
    return ReplayMarker(date, replay_id)


def _rebuild(kind: Any, base: Any, fields: Any) -> ReplayMarker:
    """Make a marker in the way of the two oldest protocols."""
    if kind is not make_marker or base is not _as_tuple:
        raise PickleError("it is no replay marker")
    date, replay_id = fields
    return ReplayMarker(date, replay_id)


def _as_tuple() -> None:
    """Stand for the class of tuples, which only :func:`_rebuild` is given."""


def find(module: str, name: str) -> Callable[..., Any]:
    """Give a function in place of what a pickle names.

    :param module: the module that the pickle names; markers have been in several
    :param name: the name in it
    :return: a function that makes markers or a part of that; never a class
    :raises PickleError: for anything else
    """
    if name == "ReplayMarker":
        return make_marker
    if name == "_reconstructor" and module in _COPYREG:
        return _rebuild
    if name == "tuple" and module in _BUILTINS:
        return _as_tuple
    raise PickleError(f"it names {module}.{name}, which is no replay marker")


class _Machine:
    """Runs the opcodes of a pickle; :mod:`pickletools` says what each of them does."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Run one opcode.

        :param name: its name
        :param argument: its argument, or None
        :raises PickleError: if it is one that no marker needs
        """
        if name in _VALUES:
            self._stack.append(argument)
            return
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[argument])
            case "GLOBAL":
                self._stack.append(find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, function = self._pop(2)
                self._stack.append(find(module, function))
            case "REDUCE" | "NEWOBJ":
                self._stack.append(_call(*self._pop(2)))
            case _:
                self._build(name)

    def _build(self, name: str) -> None:
        """Run an opcode that puts values together."""
        stack = self._stack
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "MARK":
                stack.append(_SINGLE[name])
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(_SIZES[name])))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self._since_mark())
            case "APPEND" | "APPENDS":
                values = self._pop(1) if name == "APPEND" else self._since_mark()
                stack[-1].extend(values)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_dict_of(self._since_mark()))
            case "SETITEM" | "SETITEMS":
                values = self._pop(2) if name == "SETITEM" else self._since_mark()
                stack[-1].update(_dict_of(values))
            case _:
                raise PickleError(f"it has the opcode {name}, which no replay marker needs")

    def _pop(self, count: int) -> list[Any]:
        """Take the last *count* values."""
        return [self._stack.pop() for _ in range(count)][::-1]

    def _since_mark(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        values = []
        while (value := self._stack.pop()) is not _SINGLE["MARK"]:
            values.append(value)
        return values[::-1]

    def result(self) -> Any:
        """Give the value that is left at the end.

        :raises PickleError: if it is no value
        """
        value = self._stack.pop()
        if self._stack or callable(value):
            raise PickleError("it is no replay marker")
        return value


def _call(function: Any, arguments: Any) -> ReplayMarker:
    if function not in (make_marker, _rebuild) or not isinstance(arguments, tuple):
        raise PickleError("it makes something else than replay markers")
    marker: ReplayMarker = function(*arguments)
    return marker


def _dict_of(keys_and_values: list[Any]) -> dict[Any, Any]:
    return dict(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))


#: Opcodes whose argument is a value.
_VALUES: Final = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    }
)
#: Opcodes that stand for one value. A mark is where a tuple, list or dict begins.
_SINGLE: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": object()}
_SIZES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
