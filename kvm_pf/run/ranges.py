# SPDX-License-Identifier: GPL-2.0-only
"""One meaning of 64-bit values: Python's exact integers, for every engine, or a refusal.

The plain run computes with Python's integers, which neither wrap nor end.  Compiled code and the solver hold 64
bits.  `& | ^ ~ + - * <<` give the same low 64 bits in all of them.  Comparison, truth, `>>`, `//`, `%`, min and
max depend on the number itself: 64 bits are enough if both operands are known to be unsigned (0 to 2^64 - 1), or
both signed (-2^63 to 2^63 - 1).  A `Range` is what is known of a value: the columns say what goes in, and every
operator says what comes out of it.  `uses` runs a loop of the path on ranges, and says of each function which of
its operators are unsigned; anything else is refused with an InputError that names the step and the operator.

`& U64_MASK` makes an unsigned value of any other, in every engine: what a u64 of the kernel would hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from opcode import opmap
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, NoReturn

from kvm_pf.bits import U64_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.revisions.link import global_names

SIGNED_MIN, SIGNED_MAX = -(1 << 63), (1 << 63) - 1

ORDER, RIGHT_SHIFT, DIVISION, REMAINDER = "order", ">>", "//", "%"
"""The operators that read 64 bits as a number: `< <= > >=` (and min, max, which compare), and three more."""

PATHS = 1 << 14
"""So many ways through one function, and so many decisions on one of them, are looked at."""


class Span(NamedTuple):
    """The least and the greatest number that a value can be."""

    low: int
    high: int

    @property
    def unsigned(self) -> bool:
        """Whether it fits into an unsigned 64-bit value."""
        return self.low >= 0 and self.high <= U64_MASK

    @property
    def signed(self) -> bool:
        """Whether it fits into a signed 64-bit value."""
        return self.low >= SIGNED_MIN and self.high <= SIGNED_MAX


U64 = Span(0, U64_MASK)
S64 = Span(SIGNED_MIN, SIGNED_MAX)
TRUTH = Span(0, 1)


def join(a: Span, b: Span) -> Span:
    """Return the span of a value that is one or the other."""
    return Span(min(a.low, b.low), max(a.high, b.high))


def refuse(step: str, operator: str, *spans: Span) -> NoReturn:
    """Raise the InputError for an operator that 64 bits cannot compute as Python does."""
    seen = " and ".join(f"{_number(s.low)} to {_number(s.high)}" for s in spans)
    raise InputError(
        f"step {step!r}, operator {operator}: operands of {seen} have no common 64-bit meaning; "
        f"reduce them first, e.g. (a - b) & U64_MASK, as a u64 of the kernel does; engine='plain' computes exactly"
    )


def _number(value: int) -> str:
    for bits in (64, 63):
        for sign in (1, -1):
            if abs(off := value - sign * (1 << bits)) <= 1:
                return f"{'-' if sign < 0 else ''}2^{bits}" + (f"{off:+d}" if off else "")
    return (
        str(value) if abs(value) < 1 << 63 else f"{'-' if value < 0 else ''}about 2^{abs(value).bit_length()}"
    )


def common(step: str, operator: str, *spans: Span) -> bool:
    """Say whether operands are read as unsigned (else: as signed).  Raises InputError if neither holds for all."""
    if all(span.unsigned for span in spans):
        return True
    if not all(span.signed for span in spans):
        refuse(step, operator, *spans)
    return False


def anded(a: Span, b: Span) -> Span:
    """The span of `a & b`."""
    if a.low >= 0 or b.low >= 0:
        return Span(0, min(span.high for span in (a, b) if span.low >= 0))
    return Span(-(1 << _width(a, b)), max(a.high, b.high))


def ored(a: Span, b: Span) -> Span:
    """The span of `a | b`: of two values that are not negative, no bit is lost."""
    low, high = xored(a, b)
    return Span(max(a.low, b.low) if low == 0 else low, high)


def xored(a: Span, b: Span) -> Span:
    """The span of `a ^ b`."""
    return Span(0 if min(a.low, b.low) >= 0 else -(1 << _width(a, b)), (1 << _width(a, b)) - 1)


def _width(*spans: Span) -> int:
    return max(end.bit_length() for span in spans for end in span)


def added(a: Span, b: Span) -> Span:
    """The span of `a + b`."""
    return Span(a.low + b.low, a.high + b.high)


def subtracted(a: Span, b: Span) -> Span:
    """The span of `a - b`."""
    return Span(a.low - b.high, a.high - b.low)


def multiplied(a: Span, b: Span) -> Span:
    """The span of `a * b`."""
    ends = [x * y for x in a for y in b]
    return Span(min(ends), max(ends))


def inverted(a: Span) -> Span:
    """The span of `~a`."""
    return Span(~a.high, ~a.low)


def shifted_left(a: Span, by: Span) -> Span:
    """The span of `a << by`; `by` within 0 to 63."""
    ends = [x << n for x in a for n in by]
    return Span(min(ends), max(ends))


def shifted_right(a: Span, by: Span) -> Span:
    """The span of `a >> by`; `by` within 0 to 63."""
    ends = [x >> n for x in a for n in by]
    return Span(min(ends), max(ends))


def check_shift(step: str, operator: str, by: Span) -> None:
    """Raise InputError unless a value is shifted by 0 to 63 bits."""
    if by.low < 0 or by.high > 63:
        raise InputError(
            f"step {step!r}, operator {operator}: shifts by {_number(by.low)} to {_number(by.high)} bits; "
            f"64-bit code shifts by 0 to 63, e.g. a {operator} (n & 63)"
        )


def check_division(step: str, operator: str, a: Span, b: Span) -> None:
    """Raise InputError unless both are unsigned and the divisor is never 0."""
    if not (a.unsigned and b.unsigned):
        refuse(step, operator, a, b)
    if b.low <= 0:
        raise InputError(
            f"step {step!r}, operator {operator}: the divisor can be 0; make it at least 1, e.g. n | 1"
        )


def decided(operator: str, a: Span, b: Span) -> Span:
    """The span of a comparison's truth: 0 to 1, or what it must be."""
    if operator in (">", ">="):
        return decided({">": "<", ">=": "<="}[operator], b, a)
    if operator == "!=":
        return subtracted(Span(1, 1), decided("==", a, b))
    if operator == "<":
        return Span(int(a.high < b.low), int(a.low < b.high))
    if operator == "<=":
        return Span(int(a.high <= b.low), int(a.low <= b.high))
    return Span(int(a.low == a.high == b.low == b.high), int(a.low <= b.high and b.low <= a.high))


def divided(a: Span, b: Span) -> Span:
    """The span of `a // b`, both unsigned."""
    return Span(a.low // b.high, a.high // b.low)


def remainder(a: Span, b: Span) -> Span:
    """The span of `a % b`, both unsigned."""
    return Span(0, min(a.high, b.high - 1))


# --- a run on ranges ---


class _Run:
    """One run along the decisions of `prefix`, then along True; the other sides stay open."""

    def __init__(self, prefix: list[bool]) -> None:
        self.prefix, self.taken, self.open = prefix, [], []  # type: ignore[var-annotated]
        self.known: dict[int, bool] = {}
        self.alive: list[Any] = []  # what `known` names stays alive, and with it its id

    def choose(self, value: Range) -> bool:
        if id(value) not in self.known:
            n = len(self.taken)
            if n > PATHS:
                raise InputError("a loop of the path has no end that can be seen from its columns")
            if n >= len(self.prefix):
                self.open.append([*self.taken, False])
            side = self.prefix[n] if n < len(self.prefix) else True
            self.taken.append(side)
            self.known[id(value)] = side
            self.alive.append(value)
        return self.known[id(value)]


class _Check:
    """What is found out while a loop is run on ranges: by function and operator, what its operands span."""

    def __init__(self) -> None:
        self.step = "loop"
        self.code: CodeType | None = None
        self.run: _Run | None = None
        self.spans: dict[tuple[CodeType | None, str], Span] = {}

    def note(self, kind: str, operator: str, *spans: Span) -> bool:
        """Note operands; say whether they are read as unsigned.  Raises InputError."""
        unsigned = common(self.step, operator, *spans)
        span = spans[0]
        for other in spans[1:]:
            span = join(span, other)
        if (self.code, kind) in self.spans:
            span = join(span, self.spans[self.code, kind])
            common(self.step, operator, span)  # one function, one meaning of its operator
        self.spans[self.code, kind] = span
        return unsigned


class Range:
    """A value of which only the least and the greatest number are known; a truth value is 0 to 1."""

    __slots__ = ("check", "span")

    def __init__(self, span: Span, check: _Check) -> None:
        self.span, self.check = span, check

    def _of(self, span: Span) -> Range:
        return Range(span, self.check)

    def _ring(rule: Callable[[Span, Span], Span], swap: bool = False) -> Any:  # type: ignore[misc]
        def operate(self: Range, other: Any) -> Range:
            a, b = self.span, span_of(other)
            return self._of(rule(b, a) if swap else rule(a, b))

        return operate

    __and__ = __rand__ = _ring(anded)
    __or__ = __ror__ = _ring(ored)
    __xor__ = __rxor__ = _ring(xored)
    __add__ = __radd__ = _ring(added)
    __mul__ = __rmul__ = _ring(multiplied)
    __sub__, __rsub__ = _ring(subtracted), _ring(subtracted, swap=True)

    def __invert__(self) -> Range:
        return self._of(inverted(self.span))

    def __neg__(self) -> Range:
        return self._of(subtracted(Span(0, 0), self.span))

    def __lshift__(self, by: Any) -> Range:
        check_shift(self.check.step, "<<", span_of(by))
        return self._of(shifted_left(self.span, span_of(by)))

    def __rlshift__(self, value: int) -> Range:
        return self._of(span_of(value)) << self

    def __rshift__(self, by: Any) -> Range:
        check_shift(self.check.step, ">>", span_of(by))
        self.check.note(RIGHT_SHIFT, ">>", self.span)
        return self._of(shifted_right(self.span, span_of(by)))

    def __rrshift__(self, value: int) -> Range:
        return self._of(span_of(value)) >> self

    def __floordiv__(self, other: Any) -> Range:
        check_division(self.check.step, "//", self.span, span_of(other))
        self.check.note(DIVISION, "//", self.span, span_of(other))
        return self._of(divided(self.span, span_of(other)))

    def __rfloordiv__(self, value: int) -> Range:
        return self._of(span_of(value)) // self

    def __mod__(self, other: Any) -> Range:
        check_division(self.check.step, "%", self.span, span_of(other))
        self.check.note(REMAINDER, "%", self.span, span_of(other))
        return self._of(remainder(self.span, span_of(other)))

    def __rmod__(self, value: int) -> Range:
        return self._of(span_of(value)) % self

    def _compared(operator: str, kind: str = ORDER) -> Any:  # type: ignore[misc]
        def compare(self: Range, other: Any) -> Any:
            if not isinstance(other, (int, Range)):
                return NotImplemented
            if kind:
                self.check.note(kind, operator, self.span, span_of(other))
            else:
                common(self.check.step, operator, self.span, span_of(other))
            return self._of(decided(operator, self.span, span_of(other)))

        return compare

    __lt__, __le__, __gt__, __ge__ = _compared("<"), _compared("<="), _compared(">"), _compared(">=")
    __eq__, __ne__ = _compared("==", ""), _compared("!=", "")
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        low, high = self.span
        common(self.check.step, "if", self.span)
        if low > 0 or high < 0:
            return True
        if (low, high) == (0, 0) or self.check.run is None:
            return (low, high) != (0, 0)
        return self.check.run.choose(self)

    def __index__(self) -> int:
        if self.span.low != self.span.high:
            raise InputError(f"step {self.check.step!r} counts with a value that only a run knows")
        return self.span.low


def span_of(value: Any) -> Span:
    """Return the span of an operand: a Range's, or a number's own."""
    return value.span if isinstance(value, Range) else Span(int(value), int(value))


def _decided(result: Any, run: _Run) -> Any:
    """A result, or a record of results, with what the run decided about their truth."""
    if isinstance(result, tuple):
        fields = [_decided(field, run) for field in result]
        return type(result)(*fields) if hasattr(result, "_fields") else tuple(fields)
    if isinstance(result, Range) and id(result) in run.known:
        low, high = result.span
        true = run.known[id(result)]
        return Range(Span(max(low, 1) if low == 0 else low, high) if true else Span(0, 0), result.check)
    return result


def _joined(values: list[Any], check: _Check) -> Any:
    first = values[0]
    if isinstance(first, tuple):
        fields = [_joined([value[n] for value in values], check) for n in range(len(first))]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    span = span_of(first)
    for value in values[1:]:
        span = join(span, span_of(value))
    return Range(span, check)


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    return span_of(value) if isinstance(value, (int, Range)) else value


class _Watched:
    """A function that answers with the ranges of all its results."""

    def __init__(self, function: FunctionType, code: CodeType, check: _Check) -> None:
        self.function, self.code, self.check = function, code, check
        self.made: dict[Any, Any] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        names = self.function.__code__.co_varnames[len(args) : self.function.__code__.co_argcount]
        args += tuple(named.pop(name) for name in names if name in named)
        key = _key(args)
        if key not in self.made:
            self.made[key] = _joined(list(self.results(*args)), self.check)
        return self.made[key]

    def results(self, *args: Any) -> Iterator[Any]:
        check = self.check
        outer = check.step, check.code, check.run
        todo: list[list[bool]] = [[]]
        seen = 0
        while todo:
            run = _Run(todo.pop())
            check.step, check.code, check.run = self.function.__name__, self.code, run
            try:
                result = self.function(*args)
            except (TypeError, AttributeError) as error:
                raise InputError(
                    f"step {check.step!r} cannot be compiled ({error}); engine='plain' runs it"
                ) from error
            finally:
                check.step, check.code, check.run = outer
            todo += run.open
            seen += 1
            if seen > PATHS:
                raise InputError(
                    f"step {self.function.__name__!r} has too many ways through it to be compiled"
                )
            yield _decided(result, run)


EXACT = frozenset({"bool", "int", "len", "max", "min", "range"})
"""The built-in functions that mean the same compiled."""


def _check_names(function: FunctionType) -> None:
    """Raise InputError if a step uses what computes where its operators are not seen."""
    code, scope = function.__code__, function.__globals__
    held = dict(zip(code.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True))
    named = {n: scope[n] for n in global_names(code) if n in scope}
    wrong = [n for n in global_names(code) if n not in scope and n not in EXACT]
    wrong += [n for n, value in {**named, **held}.items() if not _is_seen(value)]
    wrong += ["a function of its own" for value in code.co_consts if isinstance(value, CodeType)]
    if wrong:
        raise InputError(
            f"step {function.__name__!r} uses {wrong[0]}, which compiled code may compute differently; "
            f"engine='plain' runs it"
        )


def _is_seen(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, tuple)
    return isinstance(value, (FunctionType, _Watched)) or not (
        callable(value) or isinstance(value, ModuleType)
    )


class Uses:
    """What a run on ranges is linked with, and what it found: by function, which operators are unsigned."""

    def __init__(self) -> None:
        self.check = _Check()

    def constant(self, value: int) -> Any:
        """A constant of the path as a range of one number."""
        return Range(Span(value, value), self.check)

    def value(self, low: int, high: int) -> Range:
        """Any value from `low` to `high`."""
        return Range(Span(low, high), self.check)

    def bind(self, function: FunctionType) -> Any:
        """Watch a function of the path."""
        code = function.__code__
        _check_names(function)
        whole = _with_all_constants(code)
        wrapped = [self.constant(c) if type(c) is int else c for c in whole.co_consts]
        copy = _with(function, whole.replace(co_consts=tuple(wrapped)), self.constant)
        return _Watched(copy, code, self.check)

    def unsigned(self, code: CodeType) -> frozenset[str]:
        """The operators of the function with this code that are to read their operands as unsigned."""
        return frozenset(
            kind for (of, kind), span in self.check.spans.items() if of == code and span.unsigned
        )


def _with_all_constants(code: CodeType) -> CodeType:
    """Return code that loads every number from its constants: from Python 3.14 on, small ones are in the code."""
    small = opmap.get("LOAD_SMALL_INT")
    if small is None:
        return code
    raw, constants, places = bytearray(code.co_code), list(code.co_consts), {}
    for at in range(0, len(raw), 2):  # two bytes an instruction; what is kept behind one is 0
        if raw[at] == small:
            if raw[at + 1] not in places:
                places[raw[at + 1]] = len(constants)
                constants.append(raw[at + 1])
            place = places[raw[at + 1]]
            if place > 255:
                raise InputError(
                    f"step {code.co_name!r} has too many constants to be compiled; engine='plain' runs it"
                )
            raw[at : at + 2] = opmap["LOAD_CONST"], place
    return code.replace(co_code=bytes(raw), co_consts=tuple(constants))


def _with(function: FunctionType, code: CodeType, number: Callable[[int], Any]) -> FunctionType:
    """Copy a function with other code, and with `number` of every integer that it holds itself."""

    def held(value: Any) -> Any:
        return number(value) if type(value) is int else value

    cells = tuple(CellType(held(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = FunctionType(
        code,
        dict(function.__globals__),
        function.__name__,
        tuple(map(held, function.__defaults__ or ())),
        cells or None,
    )
    copy.__kwdefaults__ = {k: held(v) for k, v in (function.__kwdefaults__ or {}).items()} or None
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__annotations__ = function.__annotations__
    return copy


def as_int64(value: int) -> int:
    """The signed number of the same 64 bits, which is how compiled code holds every value."""
    low = value & U64_MASK
    return low - (1 << 64) if low >> 63 else low


def with_int64(function: FunctionType) -> FunctionType:
    """Copy a function so that no integer in it is wider than compiled code's."""
    code = function.__code__
    consts = tuple(as_int64(c) if type(c) is int else c for c in code.co_consts)
    return _with(function, code.replace(co_consts=consts), as_int64)


def calling_step(file: str) -> str:
    """The name of the function that is being run, above the frames of `file`."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename in (file, __file__):
        frame = frame.f_back
    return frame.f_code.co_name
