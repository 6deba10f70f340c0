# SPDX-License-Identifier: GPL-2.0-only
"""Prove: the path's own functions, fed with solver terms instead of numbers.

An `Int` is any 64-bit value, a `Bool` any truth value.  Arithmetic on them builds terms; asking one for its
truth (`if`, `and`, `or`, `not`) splits the run in two.  `explore` runs a function until every side has been taken
and returns its paths: what each assumes, and what it returns.  `Summary` makes one value of all paths, so that a
function that calls others does not multiply their paths by its own; it is a `bind` for the linker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, reduce, wraps
from itertools import islice
from operator import and_, or_
from signal import SIGINT, default_int_handler, getsignal
from threading import RLock
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec, TypeVar, get_type_hints

from kvm_pf.bits import U64_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.common.later import Later
from kvm_pf.revisions.link import digest
from kvm_pf.run import ranges
from kvm_pf.run.inputs import brief
from kvm_pf.run.ranges import Span

if TYPE_CHECKING:
    import z3
else:
    z3 = Later("z3")

_P = ParamSpec("_P")
_R = TypeVar("_R")

WIDTH = 64


TIMEOUT_MS = 10_000
"""How long the solver may think about one question."""


SOLVER = RLock()
"""The solver has one context, which two threads may not use at once: `prove`, `compare`, `verdict` and `explore`
hold this lock while they work, so that threads get the same answers, one after the other.  Processes are parallel.
Whoever builds terms in threads of their own holds it too."""


def alone(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function work with the solver alone."""

    @wraps(function)
    def locked(*args: _P.args, **named: _P.kwargs) -> _R:
        with SOLVER:
            return function(*args, **named)

    return locked


def untraced(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function in which no step runs do its work unwatched.

    Whoever watches steps (`kvm_pf.proof.edit.ending`) is asked about each call that Python makes, and terms take many.
    From Python 3.12 on, to stop watching and to begin again takes longer than it saves.
    """
    if sys.version_info >= (3, 12):
        return function

    @wraps(function)
    def quiet(*args: _P.args, **named: _P.kwargs) -> _R:
        if (watching := sys.gettrace()) is None:
            return function(*args, **named)
        sys.settrace(None)
        try:
            return function(*args, **named)
        finally:
            sys.settrace(watching)

    return quiet


def has_solver() -> bool:
    """Say whether the solver is installed; without it nothing here can be used."""
    try:
        import z3  # noqa: F401
    except ImportError:
        return False
    return True


class Unknown(Exception):
    """The solver gave no answer in the time it had; nothing is proved."""


@contextmanager
def patience(milliseconds: int) -> Iterator[None]:
    """Let the solver think so long about each question asked within."""
    global TIMEOUT_MS
    usual, TIMEOUT_MS = TIMEOUT_MS, milliseconds
    try:
        yield
    finally:
        TIMEOUT_MS = usual


@untraced
def new_solver(*terms: z3.BoolRef) -> z3.Solver:
    """Return a solver that holds `terms`."""
    solver = z3.SolverFor("QF_BV")
    solver.set("timeout", TIMEOUT_MS)
    if getsignal(SIGINT) is not default_int_handler:  # whoever waits for Ctrl-C is to get it, not the solver
        solver.set("ctrl_c", False)
    solver.add(*terms)
    return solver


@untraced
def satisfiable(solver: z3.Solver, *terms: z3.BoolRef) -> bool:
    """Say whether `terms` can hold together with what the solver holds.  Raises Unknown if it gives up."""
    answer = solver.check(*terms)
    if answer == z3.unknown:
        if solver.reason_unknown() == "interrupted from keyboard":
            raise KeyboardInterrupt
        raise Unknown(solver.reason_unknown())
    return bool(answer == z3.sat)


# Terms.  z3's own operators look each time whether the operands' sorts fit, which takes longer than to make the term;
# here a number has 64 bits, and everything else is a truth value.


@untraced
def _made(make: Callable[..., Any], *terms: Any) -> Any:
    """The number that one of the solver's functions makes of others."""
    context = terms[0].ctx
    return z3.BitVecRef(make(context.ref(), *(term.ast for term in terms)), context)


@untraced
def _truth(make: Callable[..., Any], *terms: Any) -> Any:
    """The truth value that one of the solver's functions makes of terms."""
    context = terms[0].ctx
    return z3.BoolRef(make(context.ref(), *(term.ast for term in terms)), context)


@untraced
def _joint(make: Callable[..., Any], terms: Sequence[Any]) -> Any:
    """The truth value that one of the solver's functions makes of any number of others."""
    context = terms[0].ctx
    asts = (z3.Ast * len(terms))(*(term.ast for term in terms))
    return z3.BoolRef(make(context.ref(), len(terms), asts), context)


def _not(term: z3.BoolRef) -> z3.BoolRef:
    return _truth(z3.Z3_mk_not, term)


@lru_cache(maxsize=4096)
def _literal(value: int, width: int = WIDTH) -> z3.BitVecRef:
    return z3.BitVecVal(value, width)


@cache
def _constant(value: bool) -> z3.BoolRef:
    return z3.BoolVal(value)


def _address(term: z3.ExprRef) -> int:
    """Where the solver keeps a term that is in use: nowhere else, and nothing else there."""
    return term.ast.value  # type: ignore[no-any-return]


_Plain = dict[int, tuple[Any, bool, bool | None, Any]]
"""Simplified terms by their address: the term, less `not`, whether it is one without, its truth if that is known, and
what it was made of, which keeps the address in use."""


class _Run:
    """One run of a function along the decisions of `prefix`, then along `True`; the other side stays open.

    With `assume`, only sides that are possible under it are taken.  `plain` is what earlier runs have simplified.
    """

    def __init__(self, prefix: list[bool], assume: list[z3.BoolRef] | None, plain: _Plain) -> None:
        self.plain = plain
        self.prefix = prefix
        self.taken: list[bool] = []
        self.condition: list[z3.BoolRef] = []
        self.open: list[list[bool]] = []  # prefixes of the sides not taken here
        self.known: dict[int, bool] = {}
        self.solver = None if assume is None else new_solver(*assume)

    def possible(self, term: z3.BoolRef) -> bool:
        return self.solver is None or satisfiable(self.solver, term)

    @untraced
    def choose(self, given: z3.BoolRef) -> bool:
        if (found := self.plain.get(_address(given))) is None:
            term, wanted = z3.simplify(given), True
            while z3.is_not(term):
                term, wanted = term.arg(0), not wanted
            truth = True if z3.is_true(term) else False if z3.is_false(term) else None
            found = self.plain[_address(given)] = term, wanted, truth, given
        term, wanted, truth, _ = found
        if truth is not None:
            return truth is wanted
        place = _address(term)
        if place not in self.known:
            self.known[place] = self.decide(term)
        return self.known[place] is wanted

    def decide(self, term: z3.BoolRef) -> bool:
        if len(self.taken) < len(self.prefix):
            side = self.prefix[len(self.taken)]
        else:
            side = self.possible(term)
            if side and self.possible(_not(term)):
                self.open.append([*self.taken, False])
        chosen = term if side else _not(term)
        self.taken.append(side)
        self.condition.append(chosen)
        if self.solver is not None:
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
            return Bool(_joint(z3.Z3_mk_and, (self.term, bool_term(other))))
        return as_int(self) & other

    def __or__(self, other: Any) -> Any:
        if isinstance(other, (Bool, bool)):
            return Bool(_joint(z3.Z3_mk_or, (self.term, bool_term(other))))
        return as_int(self) | other

    def __eq__(self, other: object) -> Any:
        if isinstance(other, (Bool, bool)):
            return Bool(_truth(z3.Z3_mk_eq, self.term, bool_term(other)))
        return as_int(self) == other

    def __ne__(self, other: object) -> Any:
        if isinstance(other, (Bool, bool)):
            return Bool(_not(_truth(z3.Z3_mk_eq, self.term, bool_term(other))))
        return as_int(self) != other

    __rand__, __ror__ = __and__, __or__
    __hash__ = object.__hash__

    def _number(operator: str) -> Any:  # type: ignore[misc]
        def operate(self: Bool, *other: Any) -> Any:
            return getattr(as_int(self), operator)(*map(as_int, other))

        return operate

    __add__, __sub__, __mul__ = _number("__add__"), _number("__sub__"), _number("__mul__")
    __lshift__, __rshift__ = _number("__lshift__"), _number("__rshift__")
    __floordiv__, __mod__ = _number("__floordiv__"), _number("__mod__")
    __lt__, __le__, __gt__, __ge__ = map(_number, ("__lt__", "__le__", "__gt__", "__ge__"))
    __invert__, __neg__, __pos__ = _number("__invert__"), _number("__neg__"), _number("__pos__")
    __truediv__, __pow__, __abs__ = _number("__truediv__"), _number("__pow__"), _number("__abs__")
    __int__, __float__, __index__ = _number("__int__"), _number("__float__"), _number("__index__")
    __radd__, __rmul__, __rsub__ = __add__, __mul__, _number("__rsub__")

    def __repr__(self) -> str:
        return f"Bool({self.term})"


class Int:
    """A number that the solver may choose: the low 64 bits of it, and the span that it is known to lie in.

    What depends on more than these bits is computed if 64 bits are enough, unsigned or signed, and refused else
    (`kvm_pf.run.ranges`).  Without a span it is any 64 bits, compared as signed and shifted as unsigned: arguments
    of which nobody has said what they are.
    """

    def __init__(self, term: z3.BitVecRef, span: Span | None = None) -> None:
        self.term = term
        self.span = span

    def __and__(self, other: Any) -> Int:
        other = as_int(other)
        spans = [span or Span(ranges.SIGNED_MIN, U64_MASK) for span in (self.span, other.span)]
        both = self.span is not None and other.span is not None
        known = both or any(span.low >= 0 for span in spans)
        return Int(_made(z3.Z3_mk_bvand, self.term, other.term), ranges.anded(*spans) if known else None)

    def __or__(self, other: Any) -> Int:
        return _ring(self, other, ranges.ored, z3.Z3_mk_bvor)

    def __xor__(self, other: Any) -> Int:
        return _ring(self, other, ranges.xored, z3.Z3_mk_bvxor)

    def __add__(self, other: Any) -> Int:
        return _ring(self, other, ranges.added, z3.Z3_mk_bvadd)

    def __sub__(self, other: Any) -> Int:
        return _ring(self, other, ranges.subtracted, z3.Z3_mk_bvsub)

    def __rsub__(self, other: Any) -> Int:
        return as_int(other) - self

    def __mul__(self, other: Any) -> Int:
        return _ring(self, other, ranges.multiplied, z3.Z3_mk_bvmul)

    def __lshift__(self, other: Any) -> Int:
        by = as_int(other)
        if by.span is None:
            return Int(_made(z3.Z3_mk_bvshl, self.term, by.term))
        ranges.check_shift(_step(), "<<", by.span)
        return _ring(self, by, ranges.shifted_left, z3.Z3_mk_bvshl)

    def __rlshift__(self, other: Any) -> Int:
        return as_int(other) << self

    def __rshift__(self, other: Any) -> Int:
        by = as_int(other)
        if by.span is not None:
            ranges.check_shift(_step(), ">>", by.span)
        unsigned = _read(">>", self) is not False
        return _ring(self, by, ranges.shifted_right, z3.Z3_mk_bvlshr if unsigned else z3.Z3_mk_bvashr)

    def __rrshift__(self, other: Any) -> Int:
        return as_int(other) >> self

    def __floordiv__(self, other: Any) -> Int:
        return _divided(self, as_int(other), "//")

    def __rfloordiv__(self, other: Any) -> Int:
        return as_int(other) // self

    def __mod__(self, other: Any) -> Int:
        return _divided(self, as_int(other), "%")

    def __rmod__(self, other: Any) -> Int:
        return as_int(other) % self

    def __invert__(self) -> Int:
        return Int(
            _made(z3.Z3_mk_bvnot, self.term), None if self.span is None else ranges.inverted(self.span)
        )

    def __neg__(self) -> Int:
        return 0 - self

    def __pos__(self) -> Int:
        return self

    def __eq__(self, other: object) -> Any:
        other = as_int(other)
        _read("==", self, other)
        return Bool(_truth(z3.Z3_mk_eq, self.term, other.term))

    def __ne__(self, other: object) -> Any:
        other = as_int(other)
        _read("!=", self, other)
        return Bool(_not(_truth(z3.Z3_mk_eq, self.term, other.term)))

    def __lt__(self, other: Any) -> Bool:
        return _less("<", self, as_int(other))

    def __le__(self, other: Any) -> Bool:
        return Bool(_not(_less("<=", as_int(other), self).term))

    def __gt__(self, other: Any) -> Bool:
        return _less(">", as_int(other), self)

    def __ge__(self, other: Any) -> Bool:
        return Bool(_not(_less(">=", self, as_int(other)).term))

    def __bool__(self) -> bool:
        return bool(self != 0)

    __rand__, __ror__, __rxor__, __radd__, __rmul__ = __and__, __or__, __xor__, __add__, __mul__
    __hash__ = object.__hash__

    def _refused(what: str) -> Any:  # type: ignore[misc]
        def refuse(self: Int, *other: Any) -> Any:
            raise InputError(
                f"step {_step()!r} uses {what} of a value that stands for many; a solver is asked with "
                "+ - * // % << >> & | ^ ~, comparisons and `if`; explain and evaluate run it with one"
            )

        return refuse

    __truediv__ = __rtruediv__ = _refused("/")
    __pow__ = __rpow__ = _refused("**")
    __matmul__ = __rmatmul__ = _refused("@")
    __divmod__ = __rdivmod__ = _refused("divmod()")
    __abs__, __round__ = _refused("abs()"), _refused("round()")
    __int__, __float__, __index__ = _refused("int()"), _refused("float()"), _refused("the number itself")
    __format__, __str__ = _refused("the text"), _refused("the text")

    def __repr__(self) -> str:
        return f"Int({self.term})"


def _step() -> str:
    """The name of the step that is being run."""
    return ranges.calling_step(__file__)


def _ring(a: Int, other: Any, rule: Callable[[Span, Span], Span], make: Callable[..., Any]) -> Int:
    b = as_int(other)
    span = None if a.span is None or b.span is None else rule(a.span, b.span)
    return Int(_made(make, a.term, b.term), span)


def _read(operator: str, *values: Int) -> bool | None:
    """Whether operands are read as unsigned; None if nobody has said what one of them is.  Raises InputError."""
    spans = [value.span for value in values if value.span is not None]
    if len(spans) < len(values):
        return None
    if all(span.unsigned for span in spans):
        return True
    return ranges.common(_step(), operator, *spans)


def _less(operator: str, a: Int, b: Int) -> Bool:
    unsigned = _read(operator, a, b)
    return Bool(_truth(z3.Z3_mk_bvult if unsigned else z3.Z3_mk_bvslt, a.term, b.term))


def _divided(a: Int, b: Int, operator: str) -> Int:
    spans = [value.span or ranges.S64 for value in (a, b)]
    ranges.check_division(_step(), operator, *spans)
    if operator == "//":
        return Int(z3.UDiv(a.term, b.term), ranges.divided(*spans))
    return Int(z3.URem(a.term, b.term), ranges.remainder(*spans))


def as_int(value: Any) -> Int:
    """A truth value as the number 0 or 1; a number as itself."""
    if isinstance(value, Bool):
        return Int(_made(z3.Z3_mk_ite, value.term, _literal(1), _literal(0)), ranges.TRUTH)
    if isinstance(value, Int):
        return value
    if not isinstance(value, int):
        what = (
            f"a {type(value).__name__}" if isinstance(value, tuple) else brief(value)
        )  # whose terms may be long
        raise InputError(f"step {_step()!r}: {what} stands where a whole number is wanted")
    return Int(_literal(int(value)), ranges.span_of(value))


def int_term(value: Any) -> z3.BitVecRef:
    """The solver's term of a number, symbolic or not."""
    return as_int(value).term


def bool_term(value: Any) -> z3.BoolRef:
    """The solver's term of a truth value, symbolic or not."""
    if isinstance(value, Bool):
        return value.term
    return _constant(value) if isinstance(value, bool) else (as_int(value) != 0).term


def any_int(name: str, span: Span | None = None) -> Int:
    """Any 64-bit value; `span` says which numbers its bits stand for, and is kept to elsewhere."""
    return Int(z3.BitVec(name, WIDTH), span)


def any_bool(name: str) -> Bool:
    """Any truth value."""
    return Bool(z3.Bool(name))


def any_of(record: type[Any], prefix: str = "") -> Any:
    """Any record of a NamedTuple class: every field any value of its type, records in it included."""
    return record(**{name: any_value(kind, prefix + name) for name, kind in get_type_hints(record).items()})


def any_value(kind: type[Any], name: str) -> Any:
    """Any value of a type: bool, int or a NamedTuple class."""
    if kind is bool:
        return any_bool(name)
    return any_int(name) if kind is int else any_of(kind, f"{name}.")


def no(truth: Any) -> Any:
    """The opposite of a truth value, symbolic or not, without a split."""
    return Bool(_not(truth.term)) if isinstance(truth, Bool) else not truth


def implies(premise: Any, conclusion: Any) -> Any:
    """If `premise`, then `conclusion`; truth values, symbolic or not."""
    return no(premise) | conclusion


def choose(truth: Any, yes: Any, other: Any) -> Any:
    """`yes` if `truth` holds, else `other`; numbers, symbolic or not, without a split."""
    if isinstance(truth, Bool):
        return Int(_made(z3.Z3_mk_ite, truth.term, int_term(yes), int_term(other)), _joined([yes, other]))
    return yes if truth else other


def _joined(values: Iterable[Any]) -> Span | None:
    """The span of a number that is one of the values."""
    spans = [as_int(value).span for value in values]
    known = [span for span in spans if span is not None]
    return reduce(ranges.join, known) if len(known) == len(spans) else None


def is_true(truth: Any, given: Iterable[tuple[Int | Bool, int]]) -> bool:
    """Whether a truth value, symbolic or not, is true if the given terms have the given values."""
    pairs = [
        (term.term, z3.BoolVal(bool(value)) if isinstance(term, Bool) else int_term(value))
        for term, value in given
    ]
    return bool(z3.is_true(z3.simplify(z3.substitute(bool_term(truth), *pairs))))


def all_of(truths: Iterable[Any]) -> Any:
    """All of the truth values, symbolic or not."""
    return reduce(and_, truths, True)


def one_of(truths: Iterable[Any]) -> Any:
    """At least one of the truth values, symbolic or not."""
    return reduce(or_, truths, False)


class Path(NamedTuple):
    """One way through a function: what it assumes, and what it returns."""

    condition: z3.BoolRef
    result: Any


@alone
def explore(function: Callable[..., Any], *args: Any, assume: tuple[Any, ...] = ()) -> list[Path]:
    """Return every path of `function` that is possible under `assume` (Bools).  Raises Unknown."""
    return list(_explore(lambda: function(*args), [bool_term(a) for a in assume]))


def _explore(function: Callable[[], Any], assume: list[z3.BoolRef] | None) -> Iterator[Path]:
    """Find the paths one by one; without `assume` the solver is not asked whether they are possible."""
    global _current
    outer = _current
    todo: list[list[bool]] = [[]]
    plain: _Plain = {}
    while todo:
        _current = run = _Run(todo.pop(), assume, plain)
        try:
            result = function()
        finally:
            _current = outer
        todo += run.open
        yield Path(conjunction(run.condition), result)


def conjunction(terms: Sequence[z3.BoolRef]) -> z3.BoolRef:
    """All of the terms."""
    return _joint(z3.Z3_mk_and, terms) if terms else _constant(True)


@untraced
def merge(paths: list[Path]) -> Any:
    """Make one value of the results of all paths: a number, a truth value, or a tuple of such, field by field."""
    values = [path.result for path in paths]
    first = values[0]
    if isinstance(first, tuple):
        fields = [merge([Path(path.condition, path.result[n]) for path in paths]) for n in range(len(first))]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    if all(not isinstance(v, (Int, Bool)) and type(v) is type(first) and v == first for v in values):
        return first
    truth = all(isinstance(value, (Bool, bool)) for value in values)
    terms = [bool_term(value) if truth else int_term(value) for value in values]
    merged = terms[-1]
    for path, term in zip(reversed(paths[:-1]), reversed(terms[:-1]), strict=True):
        if _address(term) != _address(merged):
            merged = (_truth if truth else _made)(z3.Z3_mk_ite, path.condition, term, merged)
    return Bool(merged) if truth else Int(merged, _joined(values))


def _identity(value: Any) -> Any:
    if isinstance(value, (Int, Bool)):
        return type(value), _address(value.term), getattr(value, "span", None)
    if isinstance(value, tuple):
        return tuple(_identity(field) for field in value)
    return type(value), value


MANY = 60
"""So many paths of one function are worth asking the solver which of them are possible."""


def all_paths(function: Callable[..., Any], *args: Any) -> list[Path]:
    """Return every path of `function`, and perhaps some that are impossible, which do no harm."""
    paths = list(islice(_explore(lambda: function(*args), None), MANY))
    return paths if len(paths) < MANY else explore(function, *args)


class Summary:
    """A function that answers with all of its paths' results in one.  It is right if its paths are `complete`.

    What was worked out once is kept, for every function that does the same (`key`).
    """

    _made: ClassVar[dict[str, dict[Any, tuple[Any, Any]]]] = {}

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.key = digest(function, {})
        self.made = self._made.setdefault(self.key, {})

    def __call__(self, *args: Any, **named: Any) -> Any:
        """The result, as one value of terms."""
        code = self.function.__code__
        args += tuple(named[name] for name in code.co_varnames[len(args) : code.co_argcount])
        key = _identity(args)
        if key not in self.made:
            result = merge(all_paths(self.function, *args))
            self.made[key] = args, result  # the arguments stay alive, and with them their terms' addresses
        return self.made[key][1]

    def __repr__(self) -> str:
        return f"<all paths of {self.function.__name__}, {self.key}>"


@dataclass
class SolverAnswer:
    """Whether a claim holds: proved, or refuted by `witness` (a solver's model)."""

    holds: bool
    paths: int
    witness: z3.ModelRef | None = None

    def __bool__(self) -> bool:
        return self.holds


def always(paths: list[Path], claim: Callable[[Any], Any], assume: tuple[Any, ...] = ()) -> SolverAnswer:
    """Prove that `claim(result)` is true at the end of every path.  Raises Unknown if the solver gives up."""
    for path in paths:
        solver = new_solver(*(bool_term(a) for a in assume), path.condition)
        if satisfiable(solver, z3.Not(bool_term(claim(path.result)))):
            return SolverAnswer(False, len(paths), solver.model())
    return SolverAnswer(True, len(paths))


def complete(paths: list[Path], assume: tuple[Any, ...] = ()) -> Iterator[str]:
    """Say what is wrong with a set of paths: a state that none covers, a state that two cover."""
    given = [bool_term(a) for a in assume]
    if satisfiable(new_solver(*given, *(z3.Not(p.condition) for p in paths))):
        yield "some state is on no path"
    literals = [_literals(path.condition) for path in paths]
    for i, one in enumerate(paths):
        for j, two in enumerate(paths[:i]):
            contrary = any(literals[j].get(term, side) is not side for term, side in literals[i].items())
            if not contrary and satisfiable(new_solver(*given, one.condition, two.condition)):
                yield f"paths {j} and {i} overlap"


def _literals(condition: z3.BoolRef) -> dict[int, bool]:
    """The terms that a conjunction asks to be true or false, by their numbers."""
    terms = condition.children() if z3.is_and(condition) else [condition]
    return {(t.arg(0) if z3.is_not(t) else t).get_id(): not z3.is_not(t) for t in terms}


# Small witnesses


class Variable(NamedTuple):
    """A term that a witness gives a value to, and the value that nobody would remark on."""

    term: Int | Bool
    default: int
    is_code: bool = False  # its bits are counted first of all


def _bits(value: Int | Bool) -> list[z3.BoolRef]:
    if isinstance(value, Bool):
        return [value.term]
    return [_truth(z3.Z3_mk_eq, z3.Extract(n, n, value.term), _literal(1, 1)) for n in range(WIDTH)]


class _Shrinking:
    """A solver and a state that it allows, which shrinks with every wish that can be granted."""

    def __init__(self, condition: Any) -> None:
        self.solver = new_solver(bool_term(condition))
        self.exists = satisfiable(self.solver)
        self.model = self.solver.model() if self.exists else None

    def values(self, variables: Mapping[str, Variable]) -> dict[str, int]:
        """The unsigned values of variables in the state, by name."""
        return {name: self.value(v.term) for name, v in variables.items()}

    def value(self, term: Int | Bool) -> int:
        """The unsigned value of a term in the state; a truth value's is 0 or 1."""
        assert self.model is not None
        found = self.model.eval(term.term, model_completion=True)
        return int(z3.is_true(found)) if isinstance(term, Bool) else int(found.as_long())

    def wish(self, truth: Bool) -> bool:
        """From here on, hold to `truth` if there is such a state; say so."""
        if not self.value(truth):
            if not satisfiable(self.solver, truth.term):
                return False
            self.model = self.solver.model()
        self.solver.add(truth.term)
        return True

    def fewest(self, truths: list[z3.BoolRef]) -> int:
        """From here on, hold to as few of `truths` as possible; return how many."""
        most = 0
        while not self.wish(Bool(z3.AtMost(*truths, most) if most else z3.Not(z3.Or(*truths)))):
            most += 1
        return most


@untraced
def some(condition: Any, variables: Mapping[str, Variable]) -> dict[str, int] | None:
    """Return a state in which `condition` holds, in unsigned values; None if there is none.  Raises Unknown."""
    state = _Shrinking(condition)
    return state.values(variables) if state.exists else None


@untraced
def smallest(condition: Any, variables: Mapping[str, Variable]) -> dict[str, int] | None:
    """Return the smallest state in which `condition` holds; None if there is none.  Raises Unknown.

    Smallest: first, fewest bits in the codes; then, fewest other variables unlike their defaults; then, of
    each of these in turn, fewest bits, and the smallest of such numbers.  All values are unsigned.
    """
    state = _Shrinking(condition)
    if not state.exists:
        return None
    codes = [v.term for v in variables.values() if v.is_code]
    others = [v for v in variables.values() if not v.is_code]
    state.fewest([bit for code in codes for bit in _bits(code)])
    state.fewest([bool_term(v.term != v.default) for v in others])
    unlike = [v.term for v in others if not state.wish(v.term == v.default)]
    for term in (*codes, *unlike):
        bits = _bits(term)
        if state.fewest(bits):
            for bit in reversed(bits):  # the smallest: clear what can be cleared, from the top
                state.wish(Bool(_not(bit)))
    return state.values(variables)
