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
from functools import cache
from types import CodeType, FunctionType
from typing import Any

Bind = Callable[[FunctionType], Any]


def _run(function: FunctionType) -> FunctionType:
    return function


@cache
def global_names(code: CodeType) -> tuple[str, ...]:
    """The global names that a function's code loads, in order of appearance, inner functions' last."""
    loads = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for inner in _inner(code):
        loads += global_names(inner)
    return tuple(dict.fromkeys(loads))


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def link(
    root: FunctionType, names: Mapping[str, Any], bind: Bind = _run, constant: Callable[[int], int] = int
) -> Any:
    """Return `root` with the names in `names` bound, all the way down.

    `names` maps a step's or constant's name to what it means.  Every function reached is copied once and
    passed through `bind`; every integer constant through `constant`.  A function that stands for a step has
    the step's name, whatever it is called itself.
    """
    linked: dict[FunctionType, Any] = {}
    steps = {step: name for name, step in names.items() if isinstance(step, FunctionType)}

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
        name = steps.get(function, function.__name__)
        code = function.__code__
        if code.co_name != name:  # an error names the step, whatever the function was called
            code = code.replace(co_name=name)
        copy = FunctionType(code, scope, name, function.__defaults__, function.__closure__)
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__doc__ = function.__doc__
        copy.__qualname__ = function.__qualname__
        copy.__module__ = function.__module__
        copy.__annotations__ = function.__annotations__
        linked[function] = bind(copy)
        return linked[function]

    return resolve(names.get(root.__name__, root))


def digest(root: FunctionType, names: Mapping[str, Any]) -> str:
    """Return a fingerprint of everything that `root` does under `names`: code and constants, all the way down.

    Values that a function holds itself count too: defaults, and variables of the function around it.
    """
    seen: dict[FunctionType, int] = {}
    hashed = hashlib.sha256()

    def visit(function: FunctionType) -> None:
        seen[function] = len(seen)
        hashed.update(repr(_text(function.__code__)).encode())
        named = [
            (name, names.get(name, function.__globals__.get(name)))
            for name in global_names(function.__code__)
        ]
        held = [
            *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).items(),
            *(cell.cell_contents for cell in function.__closure__ or ()),
        ]
        for name, value in [*named, *(("", value) for value in held)]:
            if isinstance(value, FunctionType):
                if value not in seen:
                    visit(value)
                hashed.update(f"{name}:{seen[value]}".encode())
            elif isinstance(value, type):
                fields = getattr(value, "_fields", value.__name__), getattr(value, "_field_defaults", "")
                hashed.update(f"{name}:{fields}".encode())
            else:
                hashed.update(f"{name}={_written(value, {})}".encode())

    visit(names.get(root.__name__, root))
    return hashed.hexdigest()[:16]


def _written(value: object, known: dict[int, str]) -> str:
    """Write a value; a tuple of tuples by its fingerprint, for one that holds another twice doubles at each level."""
    if type(value) is not tuple or not any(isinstance(each, tuple) for each in value):
        return repr(value)
    if id(value) not in known:
        text = "\n".join(_written(each, known) for each in value)
        known[id(value)] = hashlib.sha256(text.encode()).hexdigest()
    return known[id(value)]


def _text(code: CodeType) -> tuple[Any, ...]:
    """What a code object does, without the place where it stands."""
    constants = [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
    return code.co_code, constants, code.co_names, [_text(inner) for inner in _inner(code)]
