# SPDX-License-Identifier: GPL-2.0-only
"""Arguments that are checked by the types that a function declares."""

from __future__ import annotations

import builtins
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import one_line

P = ParamSpec("P")
T = TypeVar("T")

_Taker = Callable[[Any], Any]

_NAMES = {int: "a whole number", str: "text", bool: "True or False", type(None): "None", float: "a number"}


def typed(**bits: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Check a function's arguments by its annotations; those named in `bits` are unsigned numbers of so many bits.

    A whole number is anything that is one in Python, numpy's too, and is handed on as an int; a truth value may be 0
    or 1.  Of a Sequence, each item is checked, and a text is none.  What has no annotation, or one that needs a library
    to be loaded, is not checked.
    The function then raises InputError that names itself, the argument, its value, and what is wanted.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters.values()

        @functools.cache
        def takers() -> tuple[list[_Taker], _Taker | None, dict[str, _Taker]]:
            """Give what takes each argument by place, those that are more, and each by name."""
            spaces = (getattr(function, "__globals__", {}), vars(builtins))
            by_place, more, by_name = [], None, {}
            for each in parameters:
                taker = _taker(
                    f"{function.__qualname__}: {each.name}",
                    _evaluated(each.annotation, spaces),
                    bits.get(each.name, 0),
                )
                if each.kind == each.VAR_POSITIONAL:
                    more = taker
                elif each.kind != each.VAR_KEYWORD:
                    by_name[each.name] = taker
                    if each.kind != each.KEYWORD_ONLY:
                        by_place.append(taker)
            return by_place, more, by_name

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> T:
            by_place, more, by_name = takers()
            taken = [take(value) for take, value in zip(by_place, args, strict=False)]
            rest = args[len(taken) :]
            taken += [more(value) for value in rest] if more else rest
            for name in kwargs.keys() & by_name.keys():
                kwargs[name] = by_name[name](kwargs[name])
            # What does not fit its parameters is a TypeError, here as without us.
            return function(*taken, **kwargs)

        return checked

    return decorate


def check(what: str, value: object, wanted: Any, bits: int = 0) -> Any:
    """Return a value as `wanted` (a type, or several joined by |); raise InputError naming `what` otherwise."""
    for kind in typing.get_args(wanted) if _is_union(wanted) else (wanted,):
        found, taken = _as(value, kind)
        if found:
            if bits and isinstance(taken, int) and not 0 <= taken < 1 << bits:
                break
            return taken
    raise InputError(f"{what}={_brief(value)}: {_words(wanted, bits)} is wanted")


def _taker(what: str, wanted: Any, bits: int) -> _Taker:
    """Give a function that returns a value as `check` does, at once where its type says that it is right."""
    if wanted is inspect.Parameter.empty or wanted is Any:
        return lambda value: value
    if typing.get_origin(wanted) is Sequence:
        return lambda value: _items(what, value, typing.get_args(wanted)[0], bits)
    kinds = typing.get_args(wanted) if _is_union(wanted) else (wanted,)
    right = {kind for kind in kinds if isinstance(kind, type)} - ({int} if bits or bool in kinds else set())
    limit = 1 << bits

    def take(value: Any) -> Any:
        kind = type(value)
        if kind in right or (kind is int and bits and int in kinds and 0 <= value < limit):
            return value
        return check(what, value, wanted, bits)

    return take


def _items(what: str, value: object, wanted: Any, bits: int) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise InputError(f"{what}={_brief(value)}: a list is wanted, each item {_words(wanted, bits)}")
    return [check(f"{what}[{n}]", item, wanted, bits) for n, item in enumerate(value)]


def _evaluated(annotation: Any, spaces: tuple[dict[str, Any], dict[str, Any]]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(spaces[0]), spaces[1])  # our own source
    except (NameError, AttributeError, TypeError):
        return Any


def _is_union(wanted: Any) -> bool:
    return isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union


def _as(value: object, kind: Any) -> tuple[bool, Any]:
    """Say whether a value is of a kind, and return it as such."""
    if kind is None or kind is type(None):
        return value is None, None
    if kind is int or kind is bool:
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            is_numpy_truth = type(value).__name__ in ("bool_", "bool")
            return is_numpy_truth, bool(value) if is_numpy_truth else None
        return (kind is int or number in (0, 1)), (number if kind is int else bool(number))
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value in typing.get_args(kind), value
    if kind is Any or kind is object or not isinstance(origin or kind, type):
        return True, value
    return isinstance(value, origin or kind), value


def _words(wanted: Any, bits: int = 0) -> str:
    kinds = typing.get_args(wanted) if _is_union(wanted) else (wanted,)
    return " or ".join(_word(kind, bits) for kind in kinds)


def _word(kind: Any, bits: int) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if kind is int and bits:
        return f"an unsigned {bits}-bit number"
    return str(_NAMES.get(kind) or getattr(kind, "__name__", kind))


def _brief(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    try:
        return one_line(repr(value), 80)
    except Exception:  # whatever a stranger's __repr__ does
        return f"a {type(value).__name__}"
