# SPDX-License-Identifier: GPL-2.0-only
"""Judge a change: which curated cases notice it, which claims fall, and the smallest input on which it shows.

    def sanitize(error_code):
        return error_code, 0

    verdict(sanitize)

Claims, and the smallest of all inputs, are the solver's to find.  Where it is not installed the cases judge alone,
which needs nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from traceback import extract_tb
from types import FunctionType
from typing import Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import one_line, write_number
from kvm_pf.common.typed import typed
from kvm_pf.conformance.cases import CaseDifference, differences, read_cases, run_case
from kvm_pf.proof.ask import Answer, beside, find, prove
from kvm_pf.proof.case import WAYS, Case
from kvm_pf.proof.claims import CLAIMS, HOLDS, PROVED, Claim
from kvm_pf.proof.edit import DoesNotEnd, clock, ending
from kvm_pf.proof.mutants import ENTRIES, Apart, Doubt, behind
from kvm_pf.proof.terms import TIMEOUT_MS, Unknown, alone, has_solver, patience
from kvm_pf.revisions import Revision, get, steps_of
from kvm_pf.run.inputs import ANSWERS, answers, brief, row_values
from kvm_pf.run.tables import ENTRY_POINTS
from kvm_pf.run.watch import Record, flat

SHOWN = 6
"""So many cases are printed."""

NO_SOLVER = "z3, the solver, is not installed here"

RAISES = "raises"
"""What stands for the output of a case whose run ended in an error."""

STRAY = (Exception, SystemExit, GeneratorExit)
"""What a changed step may raise to no other effect than that a case fails; Ctrl-C still ends all."""

SECONDS = 60.0
"""So long cases are run, and claims asked, unless somebody says otherwise."""


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

    def first(self, id: str) -> CaseDifference:
        """The first value of a case that is not the expected one."""
        return next(found for found in self.differences if found.id == id)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """The claims that could not be asked, by the reason why."""
        found: dict[str, list[str]] = {}
        for name, why in self.unasked.items():
            found.setdefault(why, []).append(name)
        return found

    def steps(self) -> dict[str, list[Record]]:
        """The steps of the smallest witness, of the base and of the changed revision, by the revision's name.

        There are none without a witness, or if it is an input of one function.  Raises InputError if the changed
        step returns what the sentences about it cannot put into words.
        """
        way = next(
            (entry for entry in WAYS.values() if self.witness and entry.title == self.witness.way), None
        )
        if way is None or self.witness is None:
            return {}
        runs = {}
        for revision in (self.base, self.revision):
            case = Case(self.witness.state, watch=True)
            with steps_of(revision), ending(revision):
                case.take(way.function, revision)
            runs[revision.name] = flat(case.records)
        return runs

    def beside(self) -> str:
        """The smallest witness and its steps, before and after the change, side by side."""
        runs = self.steps()
        return "\n".join([f"smallest witness: {self.witness or 'none'}", *(beside(runs) if runs else [])])

    def __str__(self) -> str:
        ids = self.cases
        lines = [
            f"{self.revision.name}, a changed {self.base.name}:",
            f"cases that fail: {len(ids)} of {self.asked}",
        ]
        lines += [f"  {id}: {in_words(self.first(id))}" for id in ids[:SHOWN]]
        lines += [f"  and {len(ids) - SHOWN} more"] if len(ids) > SHOWN else []
        told = f"{len(self.fallen)} of {self.claims}" if self.claims else f"none was asked: {NO_SOLVER}"
        lines.append(f"claims that fall: {told}")
        lines += [f"  {answer.claim.name}: {answer.claim.statement}" for answer in self.fallen]
        lines += [f"  not asked: {len(names)} of them ({why})" for why, names in self.reasons.items()]
        remark = f" ({self.remark})" if self.remark else ""
        lines.append(f"smallest witness: {self.witness or 'none'}{remark}")
        return "\n".join(lines)

    __repr__ = __str__


def _shown(value: object) -> str:
    if value is None:
        return "not reached"
    return write_number(value) if isinstance(value, int) and value.bit_length() <= 128 else brief(value)


def in_words(difference: CaseDifference) -> str:
    """Say what a case got and what it expected."""
    if difference.column == RAISES:
        return f"raises {difference.got}"
    return f"{difference.column} is {_shown(difference.got)}, not {_shown(difference.expected)}"


@alone
@typed()
def verdict(
    change: Revision | FunctionType,
    claims: str | Claim | Iterable[str | Claim] = (),
    *,
    base: str | Revision = "posted",
    seconds: float | int = SECONDS,
) -> Verdict:
    """Judge a changed revision by what is expected of the one that it was derived from.

    `change` is a derived revision, or a function that is to replace the step of its name in `base`.  Asks the claims
    that are proved of the base, or only those given; without the solver, none.  After `seconds` of this thread's
    processor time nothing more is asked, and a step that does not return is stopped.  A run that ends in an error
    counts as a case that fails.
    A changed step may use names of the path, numbers, its own functions that do no more, and bool, int, max, min, abs,
    len, str and isinstance: it could not be stopped in others, such as time.sleep.
    Raises InputError if there is no such step or claim, if the revision is derived from none, if the changed step
    uses more than that or does not end, or if steps call each other in a circle.
    """
    revision = change if isinstance(change, Revision) else _replaced(change, get(base))
    if revision.base is None:
        raise InputError(f"{revision.name} is derived from no revision that it could be held against")
    if not 0 < seconds < 1e6:
        raise InputError(f"verdict: seconds={seconds}: a number from 1 to a million is wanted")
    wanted = [find(claim) for claim in ([claims] if isinstance(claims, str | Claim) else claims)]
    with ending(revision):
        try:
            for entry in ENTRIES:
                behind(revision, entry)
        except RecursionError:
            raise InputError(f"{revision.name}: its steps call each other in a circle") from None
        return _judged(revision, revision.base, wanted, clock() + seconds)


def _replaced(step: FunctionType, base: Revision) -> Revision:
    changes: dict[str, Any] = {step.__name__: step}
    return base.derive(f"{base.name} with another {step.__name__}", "", **changes)


def _judged(revision: Revision, base: Revision, claims: list[Claim], end: float) -> Verdict:
    cases = [row for row in read_cases() if row["revision"] == base.name]
    found: list[CaseDifference] = []
    for row in cases:
        if clock() > end:
            raise DoesNotEnd(f"{revision.name}: the cases took too long; stopped before {row['id']}")
        found += _differences(row, revision)
    asked = claims or [
        claim for claim in CLAIMS.values() if claim.strength == PROVED and claim.expected(base.name) == HOLDS
    ]
    noticed = {difference.id for difference in found if difference.column != RAISES}
    telling = [row for row in cases if row["id"] in noticed]
    if not has_solver():
        smallest = by_cases(telling, revision)
        remark = "of the curated cases, which alone were run" if smallest else NO_SOLVER
        return Verdict(revision, base, len(cases), found, 0, [], {}, smallest, remark)
    fallen, unasked = [], {}
    for claim in asked:
        if clock() > end:
            unasked[claim.name] = OUT_OF_TIME
            continue
        try:
            with patience(_left(end)):
                answer = prove(claim, revision)
        except DoesNotEnd:
            raise
        except STRAY as error:  # the change cannot be fed with solver terms
            unasked[claim.name] = _why(error)
            continue
        if answer.holds is None:
            unasked[claim.name] = OUT_OF_TIME if clock() > end else GAVE_UP
        elif not answer.holds:
            fallen.append(answer)
    smallest, remark = witness(revision, end)
    if smallest is None and remark in (OUT_OF_TIME, GAVE_UP) and (smallest := by_cases(telling, revision)):
        remark = f"of the curated cases; of all inputs the solver found none: {remark}"
    return Verdict(revision, base, len(cases), found, len(asked), fallen, unasked, smallest, remark)


OUT_OF_TIME = "there was no time left"
GAVE_UP = "the solver gave up"


def _left(end: float) -> int:
    """How many milliseconds the solver may think about a question, if all is to end at `end` (`clock`)."""
    return max(1, int(1000 * min(TIMEOUT_MS / 1000, end - clock())))


def _why(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception as other:  # it is the change's own
        said = f"its text cannot be had: {type(other).__name__}"
    return one_line(said if isinstance(error, InputError) else f"{type(error).__name__}: {said}", 200)


def _differences(row: Mapping[str, Any], revision: Revision) -> list[CaseDifference]:
    """What a case notices; a run that ends in an error is one such thing."""
    try:
        return differences([row], revision)
    except DoesNotEnd:
        raise
    except RecursionError:
        raise DoesNotEnd(f"{revision.name}: its steps call themselves, or each other, too often") from None
    except STRAY as error:  # whatever a changed step does, or makes others do
        steps = {name for name, value in revision.changes.items() if isinstance(value, FunctionType)}
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.name in steps]
        place = f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
        return [CaseDifference(row["id"], row["revision"], RAISES, "a result", _why(error) + place)]


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
            if state.get("pf_ret", -1) >= 0:  # a number of the revision's
                names = {number: name for name, number in answers(revision.base).items()}
                state["pf_ret"] = ANSWERS.index(names[state["pf_ret"]])
            return Apart(ENTRY_POINTS[row["kind"]].title, state, unlike)
    return None


@alone
def witness(revision: Revision, end: float = float("inf")) -> tuple[Apart | None, str]:
    """Find the smallest input on which a revision and its base differ, if possible one that a fault can meet.

    Without one, say why.  Nothing is looked for once the clock (`clock`) has passed `end`.
    """
    assert revision.base is not None
    unmet, why = None, "they do the same"
    for entry in ENTRIES:
        if behind(revision, entry).digests == behind(revision.base, entry).digests:
            continue
        if clock() > end:
            return unmet, OUT_OF_TIME
        try:
            with patience(_left(end)):
                doubt = Doubt(entry, revision.base, revision)
                if found := doubt.smallest(reachable=True):
                    return found, ""
                unmet = unmet or doubt.smallest()
        except Unknown:
            why = OUT_OF_TIME if clock() > end else GAVE_UP
        except DoesNotEnd:
            raise
        except STRAY as error:  # the change cannot be fed with solver terms
            why = _why(error)
    return unmet, f"no fault of {revision.base.name} can meet it" if unmet else why
