# SPDX-License-Identifier: GPL-2.0-only
"""Describe a set of states by few conditions on the inputs, which the solver finds and proves to be exact.

cover(case, region, given, facts) -> conditions, whether they are exactly the region
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_pf.bits import PFERR, PFERR_NESTED_GUEST_PAGE, PFERR_SYNTHETIC_MASK
from kvm_pf.common.later import Later
from kvm_pf.exits import PF_LOWER32_MASK
from kvm_pf.faultin import KVM_PFN_NOSLOT
from kvm_pf.mmio import update_in_progress
from kvm_pf.proof.case import CODES, COLUMNS, WAYS, Case
from kvm_pf.proof.terms import bool_term, new_solver, no, satisfiable
from kvm_pf.revisions import Revision
from kvm_pf.run.inputs import ANSWERS, U64_MAX
from kvm_pf.run.tables import VM_TYPES
from kvm_pf.state import KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    import z3
else:
    z3 = Later("z3")

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
            Fact(
                "the handler is called for it",
                "the handler is not called for it",
                lambda c: c.page_ready(a).handled.called,
            ),
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
