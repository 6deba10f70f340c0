# SPDX-License-Identifier: GPL-2.0-only
"""Judge a change: which curated cases notice it, which claims fall, and the smallest input on which it shows.

Claims, and the smallest of all inputs, are the solver's to find.  Where it is not installed the cases judge alone,
which needs nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import write_number
from kvm_pf.common.typed import typed
from kvm_pf.conformance.cases import CaseDifference, differences, read_cases, run_case
from kvm_pf.proof.ask import Answer, find, prove
from kvm_pf.proof.claims import CLAIMS, HOLDS, PROVED, Claim
from kvm_pf.proof.mutants import ENTRIES, Apart, Doubt, behind
from kvm_pf.proof.terms import Unknown, alone, has_solver
from kvm_pf.revisions import Revision
from kvm_pf.run.inputs import row_values
from kvm_pf.run.tables import ENTRY_POINTS

SHOWN = 6
"""So many cases are printed."""

NO_SOLVER = "z3, the solver, is not installed here"


@dataclass
class Verdict:
    """What became of a changed revision beside the one it was derived from."""

    revision: Revision
    base: Revision
    asked: int  # curated cases that speak of the base
    differences: list[CaseDifference]  # expected values that the change does not give
    claims: int  # claims that should hold for the base and were asked, if they could be; 0 without the solver
    fallen: list[Answer]
    unasked: dict[str, str]  # claims that could not be asked, and why
    witness: Apart | None  # the smallest input on which the two differ
    remark: str  # why there is none; or that no fault can meet it

    @property
    def cases(self) -> list[str]:
        """The ids of the cases that fail."""
        return list(dict.fromkeys(found.id for found in self.differences))

    def __str__(self) -> str:
        ids = self.cases
        lines = [
            f"{self.revision.name}, a changed {self.base.name}:",
            f"cases that fail: {len(ids)} of {self.asked}",
        ]
        for id in ids[:SHOWN]:
            first = next(found for found in self.differences if found.id == id)
            lines.append(f"  {id}: {first.column} is {_shown(first.got)}, not {_shown(first.expected)}")
        lines += [f"  and {len(ids) - SHOWN} more"] if len(ids) > SHOWN else []
        told = f"{len(self.fallen)} of {self.claims}" if self.claims else f"none was asked: {NO_SOLVER}"
        lines.append(f"claims that fall: {told}")
        lines += [f"  {answer.claim.name}: {answer.claim.statement}" for answer in self.fallen]
        lines += [f"  {name}: not asked ({why})" for name, why in self.unasked.items()]
        remark = f" ({self.remark})" if self.remark else ""
        lines.append(f"smallest witness: {self.witness or 'none'}{remark}")
        return "\n".join(lines)

    __repr__ = __str__


def _shown(value: object) -> str:
    if value is None:
        return "not reached"
    return write_number(value) if isinstance(value, int) else repr(value)


@alone
@typed()
def verdict(revision: Revision, claims: Iterable[str | Claim] = ()) -> Verdict:
    """Judge a derived revision by what is expected of the one that it was derived from.

    Asks the claims that are proved of that one, or only those given; without the solver, none.  Raises InputError if
    it is derived from none, or if there is no such claim.
    """
    if revision.base is None:
        raise InputError(f"{revision.name} is derived from no revision that it could be held against")
    base = revision.base
    cases = [row for row in read_cases() if row["revision"] == base.name]
    found = differences(cases, revision)
    asked = [find(claim) for claim in claims] or [
        claim for claim in CLAIMS.values() if claim.strength == PROVED and claim.expected(base.name) == HOLDS
    ]
    if not has_solver():
        noticed = {difference.id for difference in found}
        smallest = by_cases([row for row in cases if row["id"] in noticed], revision)
        remark = "of the curated cases, which alone were run" if smallest else NO_SOLVER
        return Verdict(revision, base, len(cases), found, 0, [], {}, smallest, remark)
    fallen, unasked = [], {}
    for claim in asked:
        try:
            answer = prove(claim, revision)
        except Exception as error:  # the change cannot be fed with solver terms
            unasked[claim.name] = f"{type(error).__name__}: {error}"
            continue
        if answer.holds is None:
            unasked[claim.name] = "the solver gave up"
        elif not answer.holds:
            fallen.append(answer)
    return Verdict(revision, base, len(cases), found, len(asked), fallen, unasked, *witness(revision))


def by_cases(cases: Iterable[Mapping[str, Any]], revision: Revision) -> Apart | None:
    """Return a case on which a revision and its base differ, with as few inputs as any; None: there is none.

    `cases` are rows of kvm_pf.conformance.cases.  Those that call one function are left out.
    """
    assert revision.base is not None
    for row in sorted(cases, key=lambda row: len(row["input"])):
        if row["kind"] == "call":
            continue
        one, other = (run_case(row, each) for each in (revision.base, revision))
        unlike = {name: (_shown(one[name]), _shown(other[name])) for name in one if one[name] != other[name]}
        if unlike:
            usual = row_values(row["kind"], revision.base)
            values = row_values(row["kind"], revision.base, **row["input"])
            state = {name: value for name, value in values.items() if value != usual[name]}
            return Apart(ENTRY_POINTS[row["kind"]].title, state, unlike)
    return None


@alone
def witness(revision: Revision) -> tuple[Apart | None, str]:
    """Find the smallest input on which a revision and its base differ, if possible one that a fault can meet.

    Without one, say why.
    """
    assert revision.base is not None
    unmet, why = None, "they do the same"
    for entry in ENTRIES:
        if behind(revision, entry).digests == behind(revision.base, entry).digests:
            continue
        try:
            doubt = Doubt(entry, revision.base, revision)
            if found := doubt.smallest(reachable=True):
                return found, ""
            unmet = unmet or doubt.smallest()
        except Unknown:
            why = "the solver gave up"
        except Exception as error:  # the change cannot be fed with solver terms
            why = f"{type(error).__name__}: {error}"
    return unmet, f"no fault of {revision.base.name} can meet it" if unmet else why
