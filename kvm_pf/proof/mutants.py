# SPDX-License-Identifier: GPL-2.0-only
"""Break it: put a change in place of the original, and see which curated cases notice.

A mutant is one function or constant of the logic, changed.  It takes the original's place by name, in every revision
that uses the original, and the curated cases that reach it are run on the plain functions.  A mutant that no case
tells from the original is either equivalent, which the solver proves, or a gap, shown with the smallest input on which
the two differ.

    killers(mutant) -> ids of the cases that fail
    settle(mutant) -> Settled: why it is equivalent, or what no case notices
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple, get_type_hints

from kvm_pf.bits import U64_MASK
from kvm_pf.conformance.cases import CALLS, call, read_cases
from kvm_pf.proof.case import WAYS, Case, common_outputs, spelled
from kvm_pf.proof.terms import (
    Bool,
    Summary,
    Unknown,
    Variable,
    any_value,
    as_int,
    bool_term,
    new_solver,
    one_of,
    satisfiable,
    smallest,
)
from kvm_pf.revisions import REVISIONS, Revision, logic_names, path_modules, revision_modules
from kvm_pf.revisions.link import digest, global_names, link
from kvm_pf.run.inputs import read_output, row_values, run_row
from kvm_pf.run.tables import TABLES, Output

MODULES = (*path_modules(), *(f"revisions.{name}" for name in revision_modules()))
"""What is broken: the modules of the path, what revisions do differently, and the tables of bits and numbers."""

SECONDS = 0.2
"""A case that takes longer than this on the processor has met a mutant that does not end."""


@dataclass(frozen=True)
class Mutant:
    """One change: where it stands, what it says, and what the changed names mean."""

    module: str  # without "kvm_pf."
    name: str  # of the function, the constant or the bit
    line: int
    change: str  # what stood there → what stands there now
    names: Mapping[str, Any]  # the new function, or the numbers that changed
    origin: Any = None  # the function that is replaced; None: constants are


# --- the original's place ---


@cache
def reached() -> dict[CodeType, FunctionType]:
    """The functions that the cases' entry points lead to in any revision, by their code."""
    found: dict[CodeType, FunctionType] = {}

    def note(function: FunctionType) -> FunctionType:
        found[function.__code__] = function
        return function

    for revision in REVISIONS.values():
        entries: list[str | Callable[..., Any]] = [*(table.row for table in TABLES.values()), *CALLS]
        for entry in entries:
            revision.link(entry, note)
    return found


@cache
def _aliases(function: FunctionType) -> frozenset[str]:
    """Every name that some module of the logic has for a function."""
    modules = [importlib.import_module(f"kvm_pf.{short}") for short in MODULES]
    return frozenset(name for module in modules for name, value in vars(module).items() if value is function)


@cache
def _meanings(revision: Revision) -> dict[str, Any]:
    return {**logic_names(), **revision.names}


def _home(revision: Revision | None, name: str) -> str:
    """The module that a revision has a constant from; "" for the path."""
    while revision is not None and name not in revision.changes:
        revision = revision.base
    return f"revisions.{revision.name}" if revision else ""


def placed(mutant: Mutant, revision: Revision) -> Revision | None:
    """Return `revision` with the mutant in the original's place; None if it does not have the original."""
    if mutant.origin is None:
        home = mutant.module if mutant.module.startswith("revisions.") else ""
        changes = {name: v for name, v in mutant.names.items() if _home(revision, name) == home}
    else:
        (new,) = mutant.names.values()
        means = _meanings(revision)
        changes = {n: new for n in _aliases(mutant.origin) if means.get(n, mutant.origin) is mutant.origin}
    return Revision(f"{revision.name}, broken", revision, changes) if changes else None


# --- running the cases ---


class Row(NamedTuple):
    """What one curated case expects of one revision, ready to run."""

    id: str
    revision: str
    kind: str
    function: str
    given: dict[str, Any]  # arguments by name
    expect: dict[str, Any]


@cache
def rows() -> tuple[Row, ...]:
    """Everything that the curated cases expect, in the order of the corpus."""
    return tuple(_row(case) for case in read_cases())


def _row(case: Mapping[Any, Any]) -> Row:
    kind, revision, given = case["kind"], REVISIONS[case["revision"]], dict(case["input"])
    if kind != "call":
        given = row_values(kind, revision, **given)
    return Row(case["id"], revision.name, kind, case["function"], given, case["expect"])


def _run(row: Row, revision: Revision) -> Any:
    """Run a case's input on a revision's plain functions."""
    if row.kind == "call":
        return call(row.function, row.given, revision)
    return run_row(row.kind, row.given, revision)


def passes(row: Row, revision: Revision) -> bool:
    """Whether a case's expectations are met."""
    got = _run(row, revision)
    if row.kind == "call":
        return all(got.get(name) == value for name, value in row.expect.items())
    made = {o.column: o for o in TABLES[row.kind].outputs}
    return all(
        read_output(made[name], got, row.given, revision) == value for name, value in row.expect.items()
    )


def _note(seen: set[CodeType], frame: FrameType, event: str, argument: Any) -> None:
    seen.add(frame.f_code)


@cache
def covered() -> list[tuple[Row, frozenset[CodeType]]]:
    """Every row, with the code that it runs."""
    found, ours = [], set(reached())
    for row in rows():
        seen: set[CodeType] = set()
        sys.setprofile(partial(_note, seen))
        try:
            _run(row, REVISIONS[row.revision])
        finally:
            sys.setprofile(None)
        found.append((row, frozenset(seen & ours)))
    return found


@cache
def _loaded(codes: frozenset[CodeType]) -> frozenset[str]:
    return frozenset(name for code in codes for name in global_names(code))


def _meets(codes: frozenset[CodeType], mutant: Mutant) -> bool:
    if mutant.origin is not None:
        return mutant.origin.__code__ in codes
    return not _loaded(codes).isdisjoint(mutant.names)


class _TooLong(Exception):
    """A mutant does not end."""


def _stop(*_: Any) -> None:
    raise _TooLong


def fails(row: Row, revision: Revision) -> bool:
    """Whether a case's expectations are not met, or the run ends badly, or not at all."""
    signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)  # again, if a destructor swallows it
    try:
        return not passes(row, revision)
    except Exception:  # whatever a mutant does that no kernel would
        return True
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def killers(mutant: Mutant, without: frozenset[str] = frozenset()) -> list[str]:
    """Return the ids of the curated cases that notice a mutant, in the order of the corpus; some may be left out."""
    broken: dict[str, Revision | None] = {}
    found: dict[str, None] = {}
    for row, codes in covered():
        if row.id in found or row.id in without or not _meets(codes, mutant):
            continue
        if row.revision not in broken:
            broken[row.revision] = placed(mutant, REVISIONS[row.revision])
        revision = broken[row.revision]
        if revision is not None and fails(row, revision):
            found[row.id] = None
    return list(found)


# --- survivors: equivalent, or a gap ---

FUNCTION = "the function gives the same for all arguments"
PATH = "every way into the path gives the same for all inputs"
REACHABLE = "every way into the path gives the same in all states that can exist"
"""The strengths of a proof that a mutant is equivalent."""


FEW_CALLS = 3
"""A loop of the path that retries is proved for so many calls; run, it makes PATIENCE."""


class Settled(NamedTuple):
    """What is known of a mutant that no case kills: why it is equivalent, or how it shows."""

    proof: str
    gap: str


def settle(mutant: Mutant) -> Settled:
    """Prove a mutant equivalent, or find the smallest input that tells it from the original; unknown is a gap."""
    if "PATIENCE" in mutant.names:
        return Settled("", "not asked: proofs have a patience of their own")
    proof, seen = PATH, set()
    try:
        if mutant.origin is not None and _same_function(mutant):
            return Settled(FUNCTION, "")
        for original in _impatient():
            broken = placed(mutant, original)
            if broken is None:
                continue
            for entry in ENTRIES:
                inside = behind(original, entry)
                if not _meets(inside.codes, mutant) or (entry, inside.digests) in seen:
                    continue
                seen.add((entry, inside.digests))
                doubt = Doubt(entry, original, broken)
                if doubt.possible():
                    proof = REACHABLE
                    if apart := doubt.smallest(reachable=True):
                        return Settled("", f"{original.name}, {apart}")
    except Unknown as error:
        return Settled("", f"unknown: {error}")
    except Exception as error:  # the mutant cannot be fed with solver terms
        return Settled("", f"{type(error).__name__}: {error}")
    return Settled(proof, "") if seen else Settled("", "no way into the path leads to it")


@cache
def _impatient() -> tuple[Revision, ...]:
    """All revisions, with loops that end after few calls: the more calls, the longer the terms."""
    return tuple(Revision(r.name, r, {"PATIENCE": FEW_CALLS}, r.summary) for r in REVISIONS.values())


class Behind(NamedTuple):
    """What a revision has behind an entry point: the functions' code, and fingerprints of all that they do."""

    codes: frozenset[CodeType]
    digests: tuple[str, ...]


@cache
def behind(revision: Revision, entry: str) -> Behind:
    """Return what stands behind one of ENTRIES."""
    roots: tuple[str | Callable[..., Any], ...] = (WAYS[entry].row,) if entry in WAYS else (entry,)
    found: set[CodeType] = set()

    def note(function: FunctionType) -> FunctionType:
        found.add(function.__code__)
        return function

    for root in roots:
        revision.link(root, note)
    return Behind(frozenset(found), tuple(revision.digest(root) for root in roots))


ENTRIES = (*WAYS, *(name for name in CALLS if name not in WAYS))
"""The functions that cases enter the path by: those with columns, and others that a case can call."""


def _arguments(function: FunctionType, prefix: str = "") -> list[Any]:
    hints, code = get_type_hints(function), function.__code__
    return [any_value(hints[name], prefix + name) for name in code.co_varnames[: code.co_argcount]]


def _numbers(value: Any) -> Any:
    """Truth values as 0 and 1, for a mutant may count with them."""
    if isinstance(value, tuple):
        return type(value)(*map(_numbers, value))
    return as_int(value)


def _summary(function: FunctionType, revision: Revision) -> Any:
    others = {name: value for name, value in revision.names.items() if name != function.__name__}
    return link(function, others, Summary)


def _same_function(mutant: Mutant) -> bool:
    """Whether original and mutant agree on all arguments, in each revision that has them."""
    (new,) = mutant.names.values()
    arguments = [_numbers(argument) for argument in _arguments(mutant.origin)]
    seen = set()
    for original in REVISIONS.values():
        if placed(mutant, original) and (key := digest(mutant.origin, original.names)) not in seen:
            seen.add(key)
            one, other = (_summary(function, original)(*arguments) for function in (mutant.origin, new))
            if satisfiable(new_solver(), bool_term(_unlike(one, other))):
                return False
    return True


def _unlike(one: Any, other: Any) -> Any:
    if isinstance(one, tuple):
        return one_of(_unlike(a, b) for a, b in zip(one, other, strict=True))
    return one - other & U64_MASK != 0


class Apart(NamedTuple):
    """The smallest input of a way on which two revisions differ, and what each makes of it, by output."""

    way: str
    state: dict[str, int]
    outputs: dict[str, tuple[str, str]]

    def __str__(self) -> str:
        shown = [f"{name} {one} → {other}" for name, (one, other) in list(self.outputs.items())[:6]]
        more = f" and {len(self.outputs) - len(shown)} more" if len(self.outputs) > len(shown) else ""
        return f"{self.way}: {spelled(self.state)}: {', '.join(shown) or 'another result'}{more}"


class Doubt:
    """Whether two revisions differ behind one of ENTRIES: in an output that either reaches, for some input.

    Inputs are all that the columns of a table can say and that has a meaning; of a function that a case calls, all
    arguments.
    """

    def __init__(self, entry: str, a: Revision, b: Revision) -> None:
        self.entry, self.a, self.b = entry, a, b
        self.outputs = common_outputs(entry, a, b) if entry in WAYS else []
        self.case = Case()
        if entry in WAYS:
            self.wrong = one_of(self.case.differs(entry, o, a, b) for o in self.outputs)
            if entry == "kvm_mmu_page_fault":
                walked = (self.case.walk_leaf != 0) & (self.case.walk_leaf <= self.case.walk_root)
                self.wrong = self.wrong & self.case.has_meaning(a) & walked
            return
        self.arguments = _arguments(a.step(entry))
        one, other = (revision.link(entry, Summary)(*self.arguments) for revision in (a, b))
        pairs = [(_cell(one, o), _cell(other, o)) for o in self.outputs] or [((True, one), (True, other))]
        self.wrong = one_of(_differ(*pair) for pair in pairs)

    def possible(self) -> bool:
        """Whether any input tells the two apart.  Raises Unknown."""
        return self.case.possible(self.wrong)

    def _results(self, state: Mapping[str, int]) -> dict[str, tuple[str, str]]:
        """What the function returns for some arguments in each of the revisions."""
        given = [_with_numbers(argument, state) for argument in self.arguments]
        one, other = (revision.link(self.entry)(*given) for revision in (self.a, self.b))
        return {"result": (str(one), str(other))}

    def smallest(self, reachable: bool = False) -> Apart | None:
        """Return the smallest input that does, if wished one that can exist; None: there is none.  Raises Unknown."""
        if self.entry not in WAYS:
            state = smallest(self.wrong, {name: Variable(term, 0) for name, term in _leaves(self.arguments)})
            return None if state is None else Apart(self.entry, state, self._results(state))
        exists = self.case.reachable(self.a, self.entry) if reachable else True
        state = self.case.smallest(self.wrong & exists)
        if state is None:
            return None
        plain = Case(state)
        seen = {
            o.column: (plain.written(self.entry, o, self.a), plain.written(self.entry, o, self.b))
            for o in self.outputs
            if plain.differs(self.entry, o, self.a, self.b)
        }
        return Apart(WAYS[self.entry].title, state, seen)


def _with_numbers(value: Any, state: Mapping[str, int]) -> Any:
    """The terms in a value as the numbers that a state has for them."""
    if isinstance(value, tuple):
        return type(value)(*(_with_numbers(part, state) for part in value))
    number = state[str(value.term)]
    return bool(number) if isinstance(value, Bool) else number


def _differ(one: tuple[Any, Any], other: tuple[Any, Any]) -> Any:
    """Whether two outputs are unlike: reached by one alone, or another value."""
    return (one[0] != other[0]) | (one[0] & _unlike(one[1], other[1]))


def _cell(result: Any, output: Output) -> tuple[Any, Any]:
    reached = attrgetter(output.reached)(result) != 0 if output.reached else True
    return reached, attrgetter(output.path)(result)


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """The terms in a tuple of them, by their names."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    else:
        yield str(value.term), value
