# SPDX-License-Identifier: GPL-2.0-only
"""Prove: the path's own functions, fed with solver terms instead of numbers.

An `Int` is any 64-bit value, a `Bool` any truth value.  Arithmetic on them builds terms; asking one for its
truth (`if`, `and`, `or`, `not`) splits the run in two, as far as both sides are possible.  `explore` runs a
function until every side has been taken and returns its paths: what each assumes, and what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import z3

WIDTH = 64


class Unknown(Exception):
    """The solver gave no answer in the time it had; nothing is proved."""


class _Run:
    """One run of a function along the decisions of `prefix`, then wherever `True` is possible."""

    def __init__(self, assume: list[z3.BoolRef], prefix: list[bool]) -> None:
        self.solver = z3.Solver()
        self.solver.add(*assume)
        self.prefix = prefix
        self.taken: list[bool] = []
        self.condition: list[z3.BoolRef] = []
        self.open: list[list[bool]] = []  # prefixes of the sides not taken here

    def possible(self, term: z3.BoolRef) -> bool:
        answer = self.solver.check(term)
        if answer == z3.unknown:
            raise Unknown(self.solver.reason_unknown())
        return bool(answer == z3.sat)

    def choose(self, term: z3.BoolRef) -> bool:
        term = z3.simplify(term)
        if z3.is_true(term) or z3.is_false(term):
            return bool(z3.is_true(term))
        if len(self.taken) < len(self.prefix):
            side = self.prefix[len(self.taken)]
        else:
            side = self.possible(term)
            if side and self.possible(z3.Not(term)):
                self.open.append([*self.taken, False])
        chosen = term if side else z3.Not(term)
        self.taken.append(side)
        self.condition.append(chosen)
        self.solver.add(chosen)
        return side


_current: _Run | None = None


class Bool:
    """A truth value that the solver may choose."""

    def __init__(self, term: z3.BoolRef) -> None:
        self.term = term

    def __bool__(self) -> bool:
        if _current is None:
            raise TypeError("a solver's truth value was asked for outside of explore()")
        return _current.choose(self.term)

    def __and__(self, other: Any) -> Any:
        if isinstance(other, (Bool, bool)):
            return Bool(z3.And(self.term, bool_term(other)))
        return as_int(self) & other

    def __or__(self, other: Any) -> Any:
        if isinstance(other, (Bool, bool)):
            return Bool(z3.Or(self.term, bool_term(other)))
        return as_int(self) | other

    def __eq__(self, other: object) -> Any:
        return Bool(self.term == bool_term(other))

    def __ne__(self, other: object) -> Any:
        return Bool(self.term != bool_term(other))

    __rand__, __ror__ = __and__, __or__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Bool({self.term})"


class Int:
    """A 64-bit value that the solver may choose; compared as signed, like the compiled path's."""

    def __init__(self, term: z3.BitVecRef) -> None:
        self.term = term

    def __and__(self, other: Any) -> Int:
        return Int(self.term & int_term(other))

    def __or__(self, other: Any) -> Int:
        return Int(self.term | int_term(other))

    def __xor__(self, other: Any) -> Int:
        return Int(self.term ^ int_term(other))

    def __add__(self, other: Any) -> Int:
        return Int(self.term + int_term(other))

    def __sub__(self, other: Any) -> Int:
        return Int(self.term - int_term(other))

    def __rsub__(self, other: Any) -> Int:
        return Int(int_term(other) - self.term)

    def __lshift__(self, other: Any) -> Int:
        return Int(self.term << int_term(other))

    def __rlshift__(self, other: Any) -> Int:
        return Int(int_term(other) << self.term)

    def __rshift__(self, other: Any) -> Int:
        return Int(self.term >> int_term(other))

    def __rrshift__(self, other: Any) -> Int:
        return Int(int_term(other) >> self.term)

    def __invert__(self) -> Int:
        return Int(~self.term)

    def __neg__(self) -> Int:
        return Int(-self.term)

    def __eq__(self, other: object) -> Any:
        return Bool(self.term == int_term(other))

    def __ne__(self, other: object) -> Any:
        return Bool(self.term != int_term(other))

    def __lt__(self, other: Any) -> Bool:
        return Bool(self.term < int_term(other))

    def __le__(self, other: Any) -> Bool:
        return Bool(self.term <= int_term(other))

    def __gt__(self, other: Any) -> Bool:
        return Bool(self.term > int_term(other))

    def __ge__(self, other: Any) -> Bool:
        return Bool(self.term >= int_term(other))

    def __bool__(self) -> bool:
        return bool(self != 0)

    __rand__, __ror__, __rxor__, __radd__ = __and__, __or__, __xor__, __add__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Int({self.term})"


def as_int(value: Any) -> Int:
    """A truth value as the number 0 or 1; a number as itself."""
    if isinstance(value, Bool):
        return Int(z3.If(value.term, z3.BitVecVal(1, WIDTH), z3.BitVecVal(0, WIDTH)))
    return value if isinstance(value, Int) else Int(z3.BitVecVal(int(value), WIDTH))


def int_term(value: Any) -> z3.BitVecRef:
    """The solver's term of a number, symbolic or not."""
    return as_int(value).term


def bool_term(value: Any) -> z3.BoolRef:
    """The solver's term of a truth value, symbolic or not."""
    if isinstance(value, Bool):
        return value.term
    return z3.BoolVal(value) if isinstance(value, bool) else (as_int(value) != 0).term


def any_int(name: str) -> Int:
    """Any 64-bit value."""
    return Int(z3.BitVec(name, WIDTH))


def any_bool(name: str) -> Bool:
    """Any truth value."""
    return Bool(z3.Bool(name))


def any_of(record: type[Any], prefix: str = "") -> Any:
    """Any record of a NamedTuple class: every field any value of its type."""
    fields = {}
    for name, kind in record.__annotations__.items():
        label = f"{prefix}{name}"
        fields[name] = any_bool(label) if kind in (bool, "bool") else any_int(label)
    return record(**fields)


class Path(NamedTuple):
    """One way through a function: what it assumes, and what it returns."""

    condition: z3.BoolRef
    result: Any


def explore(function: Callable[..., Any], *args: Any, assume: tuple[Any, ...] = ()) -> list[Path]:
    """Return every possible path of `function` under `assume` (Bools).  Raises Unknown if the solver gives up."""
    global _current
    given = [bool_term(a) for a in assume]
    todo: list[list[bool]] = [[]]
    paths = []
    while todo:
        _current = run = _Run(given, todo.pop())
        try:
            result = function(*args)
        finally:
            _current = None
        todo += run.open
        paths.append(Path(z3.And(*run.condition) if run.condition else z3.BoolVal(True), result))
    return paths


@dataclass
class Verdict:
    """Whether a claim holds: proved, or refuted by `witness` (a solver's model)."""

    holds: bool
    paths: int
    witness: z3.ModelRef | None = None

    def __bool__(self) -> bool:
        return self.holds


def always(paths: list[Path], claim: Callable[[Any], Any], assume: tuple[Any, ...] = ()) -> Verdict:
    """Prove that `claim(result)` is true at the end of every path.  Raises Unknown if the solver gives up."""
    for path in paths:
        solver = z3.Solver()
        solver.add(*(bool_term(a) for a in assume), path.condition, z3.Not(bool_term(claim(path.result))))
        answer = solver.check()
        if answer == z3.unknown:
            raise Unknown(solver.reason_unknown())
        if answer == z3.sat:
            return Verdict(False, len(paths), solver.model())
    return Verdict(True, len(paths))


def complete(paths: list[Path], assume: tuple[Any, ...] = ()) -> Iterator[str]:
    """Say what is wrong with a set of paths: a state that none covers, a state that two cover."""
    given = [bool_term(a) for a in assume]
    solver = z3.Solver()
    solver.add(*given, *(z3.Not(p.condition) for p in paths))
    if solver.check() != z3.unsat:
        yield "some state is on no path"
    for i, one in enumerate(paths):
        for two in paths[:i]:
            solver = z3.Solver()
            solver.add(*given, one.condition, two.condition)
            if solver.check() != z3.unsat:
                yield f"paths {paths.index(two)} and {i} overlap"
