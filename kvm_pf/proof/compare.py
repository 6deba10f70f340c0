# SPDX-License-Identifier: GPL-2.0-only
"""Compare two revisions over all states: where exactly they differ, in what, and the smallest state that shows it.

    compare("before", "posted") -> Comparison; print it

A difference is described by a cover: conditions on the inputs such that the revisions differ in a state exactly if
one of the conditions holds.  The solver finds the conditions and proves that they are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from textwrap import fill
from types import FunctionType
from typing import Any, NamedTuple

import z3

from kvm_pf.bits import PFERR, PFERR_NESTED_GUEST_PAGE, PFERR_SYNTHETIC_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.exits import PF_LOWER32_MASK
from kvm_pf.faultin import KVM_PFN_NOSLOT
from kvm_pf.mmio import MMIO_EPT, MMIO_NPT, update_in_progress
from kvm_pf.patch.diff import diff_text, step_diff
from kvm_pf.proof.case import CODES, COLUMNS, WAYS, Case, common_outputs, default, fingerprint, spelled
from kvm_pf.proof.terms import all_of, alone, bool_term, new_solver, no, one_of, satisfiable
from kvm_pf.revisions import Revision, get, logic_names
from kvm_pf.run.inputs import ANSWERS, U64_MAX, answers, row_values
from kvm_pf.run.tables import MODE_COLUMNS, MODES, VM_TYPES, Output
from kvm_pf.state import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
    KVM_X86_TDX_VM,
)


class Topic(NamedTuple):
    """Outputs that belong together; a difference is told under the first topic that shows it."""

    title: str
    columns: tuple[str, ...]  # names, or beginnings that end with *
    everywhere: bool = False  # it is one kind of difference in whatever way a fault comes


TOPICS = (
    Topic("warnings", ("warns", "ready_warns", "vm_bugged", "vm_dead", "pr_warn")),
    Topic("the error code", ("f_error_code", "mmu_error_code", "trace_error_code")),
    Topic("private or shared", ("f_is_private",)),
    Topic("attribute look-ups", ("attr_lookups", "attr_gfn"), everywhere=True),
    Topic("the MMIO path", ("mmio_called", "mmio_ret", "chk_*", "tr_*")),
    Topic(
        "who is called",
        ("pf_called", "mmu_*", "calls", "rmp_*", "traced", "trace_*", "fast_mmio", "gmem_calls"),
    ),
    Topic("what follows", ("ret", "exit_reason", "mf_*", "unprot*", "emu_*", "apf_*", "skip_insn")),
    Topic("statistics", ("st_*", "ready_*"), everywhere=True),
    Topic("the MMIO cache", ("a_mmio_*",)),
    Topic("the rest", ("*",), everywhere=True),
)


def _fits(column: str, pattern: str) -> bool:
    return column.startswith(pattern[:-1]) if pattern.endswith("*") else column == pattern


@cache
def topic_of(column: str) -> Topic:
    """The topic that an output belongs to."""
    return next(topic for topic in TOPICS if any(_fits(column, pattern) for pattern in topic.columns))


# --- facts that conditions are made of ---


class Fact(NamedTuple):
    """Something that can be said of the inputs: in words, its opposite in words, and whether it is so.

    If it is that a column has one of a few values, it names the column, `words` is the value, and there is a fact
    for every other value.
    """

    words: str
    opposite: str
    holds: Callable[[Case], Any]
    column: str = ""


def _bit_facts(column: str) -> Iterator[Fact]:
    def has(words: str, mask: int, least: int = 1) -> Fact:
        return Fact(
            f"{column} has {words}",
            f"{column} has not {words}",
            lambda c: getattr(c, column) & mask == mask if least > 1 else getattr(c, column) & mask != 0,
        )

    yield Fact(f"{column} is 0", f"{column} is not 0", lambda c: getattr(c, column) == 0)
    yield has("bit 48 or 49", PFERR_SYNTHETIC_MASK)
    yield has("any of bits 32 to 63", U64_MAX ^ PF_LOWER32_MASK)
    yield has("PRESENT, WRITE and GUEST_PAGE", PFERR_NESTED_GUEST_PAGE, least=3)
    for bit in PFERR:
        yield has(bit.label, bit.mask)


_VALUES: dict[str, Sequence[str]] = {"vm_type": VM_TYPES, "pf_ret": ANSWERS, "mmio_cfg": "0123"}


def _column_facts(column: str) -> Iterator[Fact]:
    spec = COLUMNS[column]
    values = spec.labels or _VALUES.get(column, ())
    if column in CODES:
        yield from _bit_facts(column)
    elif spec.kind == "bool":
        yield Fact(column, f"not {column}", lambda c: getattr(c, column) != 0)
    elif values:
        for value, words in enumerate(values):
            yield Fact(words, "", lambda c, value=value: getattr(c, column) == value, column)  # type: ignore[misc]
    elif spec.kind == "int":
        yield Fact(f"{column} is 0", f"{column} is not 0", lambda c: getattr(c, column) == 0)
    if column == "pf_ret":
        yield Fact("an error", "", lambda c: c.pf_ret < 0, column)


def _frame_facts(r: Revision) -> Iterator[Fact]:
    """What a look for a frame comes to in one of the revisions."""
    name = r.name
    yield Fact(f"{name} takes it for MMIO", f"{name} does not take it for MMIO", lambda c: (
        c.fault_in(r).found.pfn == KVM_PFN_NOSLOT
    ))  # fmt: skip
    yield Fact(
        f"{name} asks the host", f"{name} does not ask the host", lambda c: c.fault_in(r).calls.gup != 0
    )
    yield Fact(f"{name} waits for the host", f"{name} does not wait for the host", lambda c: (
        (c.fault_in(r).calls.apf_halt != 0) | (c.fault_in(r).calls.apf_setup != 0)
    ))  # fmt: skip


TELLING = 12
"""So many of the facts are always considered, for they tell most."""


def facts(way: str, a: Revision, b: Revision) -> list[Fact]:
    """What conditions on a way's inputs are made of, the most telling first."""
    private = Fact(
        "the page is private", "the page is shared", lambda c: c.attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
    )
    updated = Fact("slots are being updated", "no update of slots", lambda c: update_in_progress(c.gen))
    telling: dict[str, list[Fact]] = {
        "kvm_mmu_page_fault": [
            private,
            Fact("it reaches the handler", "it does not reach the handler", lambda c: c.fault(a).handled.called),
            Fact(f"{b.name} calls the handler", f"{b.name} does not call it", lambda c: c.fault(b).handled.called),
            Fact("its MMIO SPTE is current", "no current MMIO SPTE", lambda c: c.fault(a).mmio.traced),
            Fact("its MMIO SPTE is stale", "no stale MMIO SPTE", lambda c: (
                c.fault(a).mmio.checked & no(c.fault(a).mmio.traced)
            )),
            updated,
        ],
        "kvm_arch_async_page_ready": [
            private,
            Fact("it is gone on with", "it is not gone on with", lambda c: c.page_ready(a).handled.called),
            Fact(f"{b.name} goes on", f"{b.name} does not go on", lambda c: c.page_ready(b).handled.called),
        ],
        "kvm_arch_vcpu_pre_fault_memory": [
            private,
            Fact("the handler is called", "the handler is not called", lambda c: c.pre_fault(a).handled.called),
            Fact(f"{b.name} calls the handler", f"{b.name} does not call it", lambda c: c.pre_fault(b).handled.called),
        ],
        "source": [
            Fact("the MMU is called", "the MMU is not called", lambda c: c.exit(a).mmu.called),
            Fact(f"{b.name} calls the MMU", f"{b.name} does not call the MMU", lambda c: c.exit(b).mmu.called),
        ],
        "kvm_faultin_pfn": [
            Fact("is_private is the page's", "is_private is not the page's", lambda c: c.is_private == (
                c.cfg_private_mem & (c.attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0)
            )),
            private,
            updated,
            *_frame_facts(a),
            *_frame_facts(b),
        ],
    }  # fmt: skip
    columns = (fact for column in WAYS[way].inputs for fact in _column_facts(column.column))
    return [*telling[way], *columns]


# --- covers ---

Condition = tuple[str, ...]
"""Facts that hold together."""

MOST = 40
"""Conditions after which a cover is given up as one that these facts cannot tell."""


class _Literal(NamedTuple):
    """A fact or its opposite, or one of several values of a column: what a condition is made of."""

    words: str
    term: z3.BoolRef
    number: int  # the fact's


def cover(case: Case, region: Any, given: Any, told_by: Sequence[Fact]) -> tuple[list[Condition], bool]:
    """Describe `region` within `given` by conditions of few facts; say whether they are exactly the region.

    Conditions are found one by one: a state of the region that none covers yet, all facts that hold in it, and of
    these the few that the solver needs to conclude that every such state is in the region; values of columns are
    joined by others that do as well.
    """
    names = [z3.Bool(f"fact {n}") for n in range(len(told_by))]  # a name each, so that it is worked out once
    meanings = [name == bool_term(fact.holds(case)) for name, fact in zip(names, told_by, strict=True)]
    assumed = [bool_term(given), *map(bool_term, case.bounds), *meanings]
    inside = bool_term(region)
    states, outside = new_solver(*assumed, inside), new_solver(*assumed, z3.Not(inside))
    world = new_solver(*assumed)
    values = [n for n, fact in enumerate(told_by) if fact.column and satisfiable(world, names[n])]
    found: list[list[_Literal]] = []
    while satisfiable(states):
        if len(found) == MOST:
            return _said(found), False
        here = list(_here(states.model(), told_by, names))
        if satisfiable(outside, *(literal.term for literal in here)):
            return _said(found), False
        found.append(_widened(outside, _needed(outside, here), told_by, names, values))
        states.add(z3.Not(_all(found[-1])))
    for condition in list(found):  # what the others cover together is not told
        rest = z3.Or(*(_all(other) for other in found if other is not condition))
        if not satisfiable(new_solver(*assumed, _all(condition)), z3.Not(rest)):
            found.remove(condition)
    return _said(found), True


def _all(condition: list[_Literal]) -> z3.BoolRef:
    return z3.And(*(literal.term for literal in condition))


def _said(found: list[list[_Literal]]) -> list[Condition]:
    said = [tuple(literal.words for literal in condition) for condition in found]
    return sorted(said, key=lambda words: (len(words), words))


def _here(model: z3.ModelRef, told_by: Sequence[Fact], names: Sequence[z3.BoolRef]) -> Iterator[_Literal]:
    """Yield what can be said of a state; of columns with a few values, which they have."""
    for number, (fact, name) in enumerate(zip(told_by, names, strict=True)):
        if z3.is_true(model.eval(name, model_completion=True)):
            yield _Literal(f"{fact.column} is {fact.words}" if fact.column else fact.words, name, number)
        elif not fact.column:
            yield _Literal(fact.opposite, z3.Not(name), number)


def _excluded(outside: z3.Solver, chosen: Sequence[_Literal]) -> bool:
    """Whether no state outside has all this."""
    return not satisfiable(outside, *(literal.term for literal in chosen))


def _needed(outside: z3.Solver, here: list[_Literal]) -> list[_Literal]:
    """Choose the few facts that exclude what is outside; of two that would do, the more telling.

    Source: Junker, "QuickXplain: preferred explanations and relaxations for over-constrained problems" (2004).
    """

    def explain(known: list[_Literal], new: bool, rest: list[_Literal]) -> list[_Literal]:
        if new and _excluded(outside, known):
            return []
        if len(rest) == 1:
            return rest
        telling, other = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        late = explain([*known, *telling], True, other)
        return [*explain([*known, *late], bool(late), telling), *late]

    if _excluded(outside, []):
        return []
    _excluded(outside, here)  # most of them do not matter: the solver names those that it used
    used = {term.get_id() for term in outside.unsat_core()}
    return explain([], False, [x for n, x in enumerate(here) if n < TELLING or x.term.get_id() in used])


def _widened(
    outside: z3.Solver,
    condition: list[_Literal],
    told_by: Sequence[Fact],
    names: Sequence[z3.BoolRef],
    values: Sequence[int],
) -> list[_Literal]:
    """Join to each column's value those that would do as well in its place; `values` are the facts that can be so."""
    wide = list(condition)
    for place, literal in enumerate(condition):
        column = told_by[literal.number].column
        if column:
            rest = [*wide[:place], *wide[place + 1 :]]
            mine = [n for n in values if told_by[n].column == column]
            good = [n for n in mine if _excluded(outside, [*rest, _Literal("", names[n], n)])]
            bad = [told_by[n].words for n in mine if n not in good]
            words = (
                _either([told_by[n].words for n in good]) if len(good) <= len(bad) else f"not {_either(bad)}"
            )
            wide[place] = _Literal(f"{column} is {words}", z3.Or(*(names[n] for n in good)), literal.number)
    return wide


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# --- comparing ---


def _wrapped(line: str) -> str:
    """Break a long line after commas; what follows stands further in than it."""
    inward = " " * (len(line) - len(line.lstrip()) + 4)
    kept = line.replace(" ", "\0").replace(",\0", ", ")
    broken = fill(kept, 110, subsequent_indent=inward, break_long_words=False, break_on_hyphens=False)
    return broken.replace("\0", " ")


@dataclass
class Place:
    """Where one kind of difference shows: a way into the path, and the states in which it does."""

    way: str
    conditions: list[Condition]
    exact: bool  # the solver proved that the conditions are these states
    always: list[str]  # outputs that differ in all of these states
    sometimes: list[str]  # and in some of them
    state: dict[str, int]  # the smallest
    shown: dict[str, tuple[Any, Any]]  # what differs in it
    cases: list[str] = field(default_factory=list)
    recordings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = [", ".join(condition) for condition in self.conditions]
        told += [] if self.exact else ["in states that these facts do not tell"]
        lines = [f"  {WAYS[self.way].title}, if {told[0]}", *(f"      or {other}" for other in told[1:])]
        lines += [f"    always differ: {', '.join(self.always)}"] if self.always else []
        lines += [f"    may differ: {', '.join(self.sometimes)}"] if self.sometimes else []
        seen = ", ".join(f"{name} {one} → {other}" for name, (one, other) in self.shown.items())
        lines.append(f"    smallest: {spelled(self.state)}: {seen}")
        for title, names in (("cases", self.cases), ("recorded", self.recordings)):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines += [f"    {title}: {', '.join(names[:3])}{more}"] if names else []
        return "\n".join(map(_wrapped, lines))


@dataclass
class Kind:
    """One kind of difference, wherever it shows."""

    topic: str
    places: list[Place]


@dataclass
class Comparison:
    """What differs between two revisions; nothing else does, as the solver proved.

    `kinds` are in the order of TOPICS.  A state that shows several topics counts for the first of them.
    """

    a: Revision
    b: Revision
    reachable: bool
    ways: tuple[str, ...]
    kinds: list[Kind]
    steps: list[str]

    @property
    def exact(self) -> bool:
        """Whether all conditions are proved to be exactly the states that differ."""
        return all(place.exact for kind in self.kinds for place in kind.places)

    def diff(self) -> str:
        """The steps that are not the same, as Python, line by line."""
        texts = []
        for step in self.steps:
            try:
                texts.append(f"{step}\n{diff_text(step_diff(step, self.a, self.b))}")
            except (InputError, OSError, SyntaxError) as error:
                texts.append(f"{step}: {error}")
        return "\n\n".join(texts)

    def __str__(self) -> str:
        states = "states that can exist in both" if self.reachable else "all states"
        many = f"{len(self.kinds)} kind{'s' * (len(self.kinds) != 1)} of difference; nothing else differs"
        lines = [
            f"{self.a.name} → {self.b.name}, {states}: {many if self.kinds else 'no difference'} (proved)"
        ]
        for n, kind in enumerate(self.kinds, 1):
            lines += [f"{n}. {kind.topic}", *map(str, kind.places)]
        if self.steps:
            lines.append(f"steps that are not the same: {', '.join(self.steps)}")
        return "\n".join(lines)

    __repr__ = __str__


States = Callable[[Case], Any]


@alone
@typed()
def compare(
    a: str | Revision,
    b: str | Revision,
    *,
    reachable: bool = True,
    way: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Find all states in which two revisions differ.

    `reachable` leaves out states that a fault cannot meet in both.  `way` names one of the ways into the path
    (`kvm_pf.proof.case.WAYS`); without it, all are compared.  `progress` is told what is looked at.  Raises
    InputError if there is no such revision or way, and Unknown if the solver gives up.
    """
    a, b = get(a), get(b)
    if way is not None and way not in WAYS:
        raise InputError(f"way={way!r}: it takes one of {', '.join(WAYS)}")
    ways = (way,) if way else tuple(WAYS)
    tell = progress or (lambda what: None)
    case = Case()
    kinds: dict[str, Kind] = {}
    for way in ways:
        if fingerprint(way, a) == fingerprint(way, b):
            continue
        places: dict[Topic, Place] = {}
        states = given(way, a, b, reachable)
        assumed = states(case)
        told: Any = False  # whether an earlier topic shows it
        for topic in TOPICS:
            tell(f"{WAYS[way].title}: {topic.title}")
            shows = _shows(case, way, topic, a, b)
            place = _place(case, way, shows & no(told), assumed, a, b)
            told = told | shows
            if place:
                key = topic.title if topic.everywhere else f"{topic.title}: {WAYS[way].title}"
                kinds.setdefault(key, Kind(key, [])).places.append(place)
                places[topic] = place
        if places:
            _look_for(places, way, states, a, b)
    order = [topic.title for topic in TOPICS]
    found = sorted(kinds.values(), key=lambda kind: order.index(kind.topic.split(":")[0]))
    return Comparison(a, b, reachable, ways, found, changed_steps(a, b))


def given(way: str, a: Revision, b: Revision, reachable: bool) -> States:
    """The states that are compared: those that mean something in both revisions, and can exist there."""

    def states(c: Case) -> Any:
        truths = []
        for revision in (a, b):
            truths += [c.has_meaning(revision)] if "pf_ret" in {i.column for i in WAYS[way].inputs} else []
            truths += [c.reachable(revision, way)] if reachable else []
        return all_of(truths)

    return states


@cache
def _outputs(way: str, topic: Topic, a: Revision, b: Revision) -> list[Output]:
    return [o for o in common_outputs(way, a, b) if topic_of(o.column) is topic]


def _shows(case: Case, way: str, topic: Topic, a: Revision, b: Revision) -> Any:
    """Whether an output of a topic differs."""
    return one_of(case.differs(way, output, a, b) for output in _outputs(way, topic, a, b))


def _place(case: Case, way: str, inside: Any, assumed: Any, a: Revision, b: Revision) -> Place | None:
    """Describe the states that are inside, among those assumed; None if there are none."""
    if inside is False or not case.possible(inside & assumed):
        return None
    columns = [i.column for i in WAYS[way].inputs if i.column in case.terms]
    state = case.smallest(inside & assumed, columns)
    assert state is not None
    conditions, exact = cover(case, inside, assumed, facts(way, a, b))
    always, sometimes = _differing(case, way, inside & assumed, a, b)
    plain = Case(state)
    shown = {
        o.column: (plain.written(way, o, a), plain.written(way, o, b))
        for o in common_outputs(way, a, b)
        if plain.differs(way, o, a, b)
    }
    return Place(way, conditions, exact, always, sometimes, state, shown)


def _differing(case: Case, way: str, where: Any, a: Revision, b: Revision) -> tuple[list[str], list[str]]:
    """The outputs that differ in all states of a region, and those that differ in some."""
    differ = {o.column: bool_term(case.differs(way, o, a, b)) for o in common_outputs(way, a, b)}
    names = {column: z3.Bool(f"{column} differs") for column in differ}
    meanings = [name == differ[column] for column, name in names.items()]
    solver = new_solver(bool_term(where), *map(bool_term, case.bounds), *meanings)

    def settled(of: dict[str, z3.BoolRef]) -> set[str]:
        """Those of the terms that hold in some state."""
        true: set[str] = set()
        while rest := {name: term for name, term in of.items() if name not in true}:
            if not satisfiable(solver, z3.Or(*rest.values())):
                break
            model = solver.model()
            true |= {
                name for name, term in rest.items() if z3.is_true(model.eval(term, model_completion=True))
            }
        return true

    can = settled(names)
    not_always = settled({column: z3.Not(name) for column, name in names.items() if column in can})
    return [n for n in differ if n in can - not_always], [n for n in differ if n in can & not_always]


def changed_steps(a: Revision, b: Revision) -> list[str]:
    """The functions and constants that the two revisions do not share, in the order of the path."""
    names = {**logic_names(), **a.names, **b.names}

    def meaning(revision: Revision, name: str) -> Any:
        return revision.step(name) if name in logic_names() or name in revision.names else None

    def same(one: Any, other: Any) -> bool:
        return one is other if isinstance(one, FunctionType) else bool(one == other)

    return [name for name in names if not same(meaning(a, name), meaning(b, name))]


# --- what shows it ---


def _look_for(places: Mapping[Topic, Place], way: str, states: States, a: Revision, b: Revision) -> None:
    """Name the curated cases whose state is one of a place's, and the recorded faults that tell the two apart."""

    def place(state: Mapping[str, int]) -> Place | None:
        case = Case(state)
        if states(case):
            return next((places[topic] for topic in places if _shows(case, way, topic, a, b)), None)
        return None

    for name, state in curated(way, a):
        if found := place(state):
            found.cases.append(name)
    if way == "kvm_mmu_page_fault":
        for name, state, seen in recorded():
            if found := place(state):
                found.recordings += _tells(name, state, seen, a, b)


def _tells(
    name: str, state: Mapping[str, int], seen: Mapping[str, int], a: Revision, b: Revision
) -> list[str]:
    """Say which revision a recorded fault agrees with, if they differ in something that was recorded."""
    case, way = Case(state), "kvm_mmu_page_fault"
    for output in common_outputs(way, a, b):
        if output.column in seen and case.differs(way, output, a, b):
            for revision in (a, b):
                reached, value = case.cell(way, output, revision)
                if reached and value == seen[output.column]:
                    return [f"{name}: {output.column} as {revision.name}"]
    return []


RECORDED = {
    "f_error_code": "in_error_code",
    "f_is_private": "in_is_private",
    "ret": "pf_ret",
    "emu_type": "emul_type",
}
"""Outputs that recordings show, and their columns there."""


@cache
def curated(way: str, revision: Revision) -> list[tuple[str, dict[str, int]]]:
    """The inputs of the curated cases that take a way, by their ids."""
    from kvm_pf.conformance.corpus import load_corpus

    cases = load_corpus().cases.drop_duplicates("id").sort_values("id")
    found = []
    for row in cases.to_dict("records"):
        given: dict[str, Any] = row["input"]
        if row["kind"] == WAYS[way].kind or (row["kind"] == "call" and row["function"] == way):
            try:
                found.append((row["id"], _state(way, given, revision)))
            except InputError:  # an answer that this revision does not have
                continue
    return found


_OWN_NAMES = {
    "kvm_arch_async_page_ready": {"error_code": "put_off_code"},
    "kvm_arch_vcpu_pre_fault_memory": {"gpa": "cr2_or_gpa"},
}
"""Inputs that cases of kind `call` name otherwise."""


def _state(way: str, given: Mapping[str, Any], revision: Revision) -> dict[str, int]:
    """Turn a curated case's inputs into numbers by column.  Raises InputError if there is no column for one."""
    given = {_OWN_NAMES.get(way, {}).get(name, name): value for name, value in given.items()}
    if "has_private_mem" in given:
        private = KVM_X86_TDX_VM if given["direct_bits"] else KVM_X86_SW_PROTECTED_VM
        given["vm_type"] = private if given.pop("has_private_mem") else KVM_X86_DEFAULT_VM
    values = row_values(WAYS[way].kind, revision, **given)
    if "pf_ret" not in values:
        return values
    back = {number: ANSWERS.index(name) for name, number in answers(revision).items()}
    return {**values, "pf_ret": back.get(values["pf_ret"], values["pf_ret"])}


@cache
def recorded() -> list[tuple[str, dict[str, int], dict[str, int]]]:
    """The recorded faults that came to kvm_mmu_page_fault(): name, state as far as it was traced, outputs seen.

    Faults of 6.1 are left out: its codes have 32 bits.  The patch's own kernel comes first.
    """
    from kvm_pf.conformance.corpus import load_corpus
    from kvm_pf.conformance.replay import revision_for

    frame = load_corpus().recordings
    frame = frame[
        frame["pf_err"].notna() & frame["state_private"].notna() & (frame["recording"] != "6.1-debian")
    ]
    frame = frame.sort_values("recording", key=lambda names: names != "posted-on-6.12", kind="stable")
    found = []
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        numbers = {number: name for name, number in answers(revision_for(row["kernel"])[0]).items()}
        mode = {"npt": "tdp", "ept": "tdp"}.get(row["mode"], "shadow")
        state = {
            **dict(zip(MODE_COLUMNS, MODES[mode], strict=True)),
            "error_code": row["pf_err"],
            "cr2_or_gpa": row["pf_gpa"],
            "vm_type": int(row["state_vm"] == "swprot"),
            "attrs": KVM_MEMORY_ATTRIBUTE_PRIVATE if row["state_private"] else 0,
            "memslot": int(bool(row["in_slot"])),
            "emu_ret": row["emul_ret"] if row["emul_ret"] is not None else 1,
            "mmio_cfg": MMIO_EPT if row["mode"] == "ept" else MMIO_NPT,
        }
        answer = row["handler_ret"]
        if answer is not None:
            state["pf_ret"] = ANSWERS.index(numbers[answer]) if answer in numbers else answer
        if row["check_spte"] is not None:
            state |= {"walk_leaf": 1, "spte1": row["check_spte"], "gen": row["check_kvm_gen"]}
        elif row["mmio_gfn"] is not None:
            state |= {"mmio_gfn": row["mmio_gfn"], "mmio_gen": default(COLUMNS["gen"])}
        name = f"{row['recording']} {row['scenario']} fault {row['fault']} ({row['op']})"
        seen = {column: int(row[cell]) for column, cell in RECORDED.items() if row[cell] is not None}
        found.append((name, {key: int(value) for key, value in state.items()}, seen))
    return found
