# SPDX-License-Identifier: GPL-2.0-only
"""Compare two revisions over all states: where exactly they differ, in what, and the smallest state that shows it.

    compare("before", "posted") -> Comparison; print it

A difference is described by a cover: conditions on the inputs such that the revisions differ in a state exactly if
one of the conditions holds.  The solver finds the conditions and proves that they are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from textwrap import fill
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.later import Later
from kvm_pf.common.typed import typed
from kvm_pf.patch.diff import diff_text, step_diff
from kvm_pf.proof.case import WAYS, Case, common_outputs, fingerprint, spelled
from kvm_pf.proof.cover import Condition, cover, facts
from kvm_pf.proof.evidence import curated, recorded, tells
from kvm_pf.proof.terms import all_of, alone, bool_term, new_solver, no, one_of, satisfiable
from kvm_pf.revisions import Revision, get, logic_names, steps_of
from kvm_pf.run.tables import Output

if TYPE_CHECKING:
    import z3
else:
    z3 = Later("z3")


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
    with steps_of(a, b):
        return _compared(a, b, reachable, (way,) if way else tuple(WAYS), progress or (lambda what: None))


def _compared(
    a: Revision, b: Revision, reachable: bool, ways: tuple[str, ...], tell: Callable[[str], object]
) -> Comparison:
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
                found.recordings += tells(name, state, seen, a, b)
