# SPDX-License-Identifier: GPL-2.0-only
"""Bind a revision's steps: one text of the logic, run, watched, compiled or proved.

The logic is plain functions that call each other by name.  A revision says what some of the names mean.
`link` makes a copy of a function in which every name means what the revision says, and so on for every
function that it calls.  What a copy *is* depends on `bind`: the function itself (to run, or to feed with
solver terms), a recording wrapper (to watch), or a compiled function.
"""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

Bind = Callable[[FunctionType], Any]


def _run(function: FunctionType) -> FunctionType:
    return function


def global_names(code: CodeType) -> list[str]:
    """The global names that a function's code loads, in order of appearance."""
    loads = (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return list(dict.fromkeys(loads))


def link(
    root: FunctionType, names: Mapping[str, Any], bind: Bind = _run, constant: Callable[[int], int] = int
) -> Any:
    """Return `root` with the names in `names` bound, all the way down.

    `names` maps a step's or constant's name to what it means.  Every function reached is copied once and
    passed through `bind`; every integer constant through `constant`.
    """
    linked: dict[FunctionType, Any] = {}

    def resolve(function: FunctionType) -> Any:
        if function in linked:
            return linked[function]
        scope = dict(function.__globals__)
        for name in global_names(function.__code__):
            value = names.get(name, scope.get(name))
            if isinstance(value, FunctionType):
                scope[name] = resolve(value)
            elif type(value) is int:
                scope[name] = constant(value)
            elif name in scope or name in names:
                scope[name] = value
        copy = FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__doc__ = function.__doc__
        copy.__qualname__ = function.__qualname__
        copy.__module__ = function.__module__
        copy.__annotations__ = function.__annotations__
        linked[function] = bind(copy)
        return linked[function]

    return resolve(names.get(root.__name__, root))


def digest(root: FunctionType, names: Mapping[str, Any]) -> str:
    """Return a fingerprint of everything that `root` does under `names`: code and constants, all the way down."""
    seen: dict[FunctionType, None] = {}
    hashed = hashlib.sha256()

    def visit(function: FunctionType) -> None:
        if function in seen:
            return
        seen[function] = None
        code = function.__code__
        hashed.update(repr((function.__name__, code.co_code, code.co_consts, code.co_names)).encode())
        for name in global_names(code):
            value = names.get(name, function.__globals__.get(name))
            if isinstance(value, FunctionType):
                visit(value)
            elif isinstance(value, type):
                hashed.update(f"{name}:{getattr(value, '_fields', value.__name__)}".encode())
            else:
                hashed.update(f"{name}={value!r}".encode())

    visit(names.get(root.__name__, root))
    return hashed.hexdigest()[:16]
