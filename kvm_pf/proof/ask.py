# SPDX-License-Identifier: GPL-2.0-only
"""Ask claims of revisions: the answer, how sure it is, and the smallest witness of a refutation.

A claim that is refuted comes with the smallest state in which it is false, run again through the plain functions.

    prove("reserved-never-private", "before") -> Answer
    prove_all() -> list of Answer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from kvm_pf.bits import (
    EPT,
    PFERR,
    decode,
)
from kvm_pf.common.cores import cores
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import check, typed
from kvm_pf.exits import KIND_EPT, KIND_NPF, KIND_TDX
from kvm_pf.proof.case import CODES, Case, spelled
from kvm_pf.proof.claims import (
    CLAIMS,
    EMPTY,
    EXHAUSTED,
    FAILS,
    HOLDS,
    PROVED,
    STATED,
    TESTED,
    UNKNOWN,
    Claim,
)
from kvm_pf.proof.terms import (
    SOLVER,
    TIMEOUT_MS,
    Unknown,
    alone,
    no,
    patience,
)
from kvm_pf.revisions import REVISIONS, Revision, get, steps_of
from kvm_pf.run.watch import Record, flat


@dataclass
class Witness:
    """A state in which a claim is false for a revision: the inputs that are unlike their defaults."""

    claim: Claim
    revision: Revision
    state: dict[str, int]
    real: bool = False  # the claim is false of it in the plain functions, too

    def __str__(self) -> str:
        return spelled(self.state)

    @property
    def other(self) -> Revision:
        """The revision to see it beside: one that keeps the claim, posted if it does; else posted or before."""
        keeping = [name for name in self.claim.holds if name != self.revision.name]
        if "posted" in keeping or not keeping:
            return get("before" if self.revision.name == "posted" else "posted")
        return get(keeping[0])

    def steps(self, revision: str | Revision | None = None) -> list[Record]:
        """The steps that the claim's check runs in this state, in this revision or another."""
        check: Any = self.claim.check
        case = Case(self.state, watch=True)
        check(case, get(revision or self.revision))
        return flat(case.records)

    def beside(self, other: str | Revision | None = None) -> str:
        """The state, its codes decoded, and the steps of this revision and of another one, side by side."""
        other = get(other or self.other)
        pair = beside({each.name: self.steps(each) for each in (self.revision, other)})
        return "\n".join([str(self), *self.codes(), *pair])

    def codes(self) -> list[str]:
        """The bits of the state's error codes, one line each."""
        table = EPT if self.state.get("kind", KIND_NPF) in (KIND_EPT, KIND_TDX) else PFERR
        return [
            f"{name} {self.state[name]:#x}: bit {row.bit}, {row.label}: {row.means}"
            for name in CODES
            for row in decode(self.state.get(name, 0), table if name == "info" else PFERR)
        ]


def step_lines(records: list[Record]) -> list[str]:
    """One line for each step: its name, the code after it, and why."""
    lines = []
    for record in records:
        after = f" → {record.after:#x}" if record.after not in (None, record.before) else ""
        lines.append(f"{'  ' * record.depth}{record.step}{after}: {record.why}")
    return lines


def beside(runs: Mapping[str, list[Record]]) -> list[str]:
    """The steps of two runs side by side, as lines of text under their names."""
    (one, left), (other, right) = ((name, step_lines(records)) for name, records in runs.items())
    width = max(map(len, [*left, one]))
    rows = zip_longest([one, *left], [other, *right], fillvalue="")
    return [f"{a:<{width}} │ {b}".rstrip() for a, b in rows]


@dataclass
class Answer:
    """What became of one claim for one revision."""

    claim: Claim
    revision: Revision
    status: str = UNKNOWN  # holds, empty, fails, unknown
    count: int | None = None  # strengths exhausted and tested: how many were run
    witness: Witness | None = None
    seconds: float = 0.0  # of the CPU

    @property
    def holds(self) -> bool | None:
        """Whether the claim is true; None: unknown."""
        return None if self.status == UNKNOWN else self.status != FAILS

    @property
    def expected(self) -> str | None:
        """What it should be; None if nobody said."""
        return self.claim.expected(self.revision.name)

    @property
    def as_expected(self) -> bool:
        """Whether the answer is the expected one; unknown never is, nor a witness that is none when it is run."""
        real = self.witness is None or self.witness.real
        return real and self.status != UNKNOWN and self.expected in (None, self.status)

    @property
    def strength(self) -> str:
        """How we know, in words."""
        if self.status == UNKNOWN:
            return "the solver gave up"
        if self.witness:
            return "refuted, run again" if self.witness.real else "refuted, but not when run again"
        over = {EXHAUSTED: f" over {self.count:,}", TESTED: f" on {self.count:,}"} if self.count else {}
        return self.claim.strength + over.get(self.claim.strength, "")

    def as_dict(self) -> dict[str, object]:
        """The answer in plain values; 64-bit numbers as they are."""
        return {
            "claim": self.claim.name,
            "revision": self.revision.name,
            "expected": self.expected,
            "answer": self.status,
            "as_expected": self.as_expected,
            "strength": self.strength,
            "seconds": round(self.seconds, 3),
            "witness": self.witness and self.witness.state,
        }

    def __str__(self) -> str:
        seen = f": {self.witness}" if self.witness else ""
        return f"{self.claim.name}, {self.revision.name}: {self.status} ({self.strength}){seen}"

    __repr__ = __str__


def find(name: str | Claim) -> Claim:
    """Return the claim called `name`, or the claim itself.  Raises InputError naming the claims there are."""
    if isinstance(name, Claim):
        return name
    if not isinstance(name, str) or name not in CLAIMS:
        raise InputError(f"there is no claim {name!r}; there are {', '.join(CLAIMS)}")
    return CLAIMS[name]


@alone
@typed()
def prove(name: str | Claim, revision: str | Revision = "posted", *, shrink: bool = True) -> Answer:
    """Ask whether a claim holds for a revision; a solver that gives up makes the answer unknown.

    The witness against a claim is the smallest state in which it is false; without `shrink`, some such state.
    Raises InputError if there is no such claim or revision.
    """
    answer = Answer(find(name), get(revision))
    start = time.process_time()
    try:
        with steps_of(answer.revision):
            _settle(answer, shrink)
    except Unknown:
        answer.status = UNKNOWN
    answer.seconds = time.process_time() - start
    return answer


def _settle(answer: Answer, shrink: bool) -> None:
    """Find out what is true; if the claim is refuted, with a state in which it is false."""
    claim, revision = answer.claim, answer.revision
    check: Any = claim.check
    if claim.strength == STATED:
        answer.status = HOLDS
    elif claim.strength == PROVED:
        case = Case()
        wrong, means = no(check(case, revision)), case.has_meaning(revision)
        state = case.smallest(wrong & means, shrink=shrink)
        if state is not None:
            answer.witness = Witness(claim, revision, state, not check(Case(state), revision))
            answer.status = FAILS
        else:
            answer.status = (
                HOLDS if all(case.possible(premise & means) for premise in case.premises) else EMPTY
            )
    else:
        holds, answer.count = check(revision)
        answer.status = HOLDS if holds else FAILS


Pair = tuple[Claim, Revision]


def asked(
    names: str | Claim | Iterable[str | Claim] = (), revisions: str | Revision | Iterable[str | Revision] = ()
) -> list[Pair]:
    """List what to ask: each claim with each revision for which something is expected of it, or with those given.

    Raises InputError if there is no such claim or revision.
    """
    if isinstance(names, str | Claim):
        names = [names]
    if isinstance(revisions, str | Revision):
        revisions = [revisions]
    given = [get(revision) for revision in check("revisions", revisions, Iterable)]
    return [
        (claim, revision)
        for claim in map(find, list(check("names", names, Iterable)) or CLAIMS)
        for revision in given or [get(r) for r in REVISIONS if claim.expected(r) is not None]
    ]


_Plain = tuple[str, int | None, tuple[dict[str, int], bool] | None, float]


def _ask(names: list[tuple[str, str]], timeout_ms: int) -> list[_Plain]:
    """Ask pairs of claim and revision by name, in a process of its own; answer in plain values."""
    answers: list[_Plain] = []
    with patience(timeout_ms):
        for name, revision in names:
            a = prove(name, revision)
            witness = (a.witness.state, a.witness.real) if a.witness else None
            answers.append((a.status, a.count, witness, a.seconds))
    return answers


def _answer(pair: Pair, plain: _Plain) -> Answer:
    status, count, witness, seconds = plain
    return Answer(*pair, status, count, Witness(*pair, *witness) if witness else None, seconds)


def _is_known(claim: Claim, revision: Revision) -> bool:
    """Whether another process knows both by their names, too."""
    ours = claim.check is None or claim.check.__module__ == Claim.__module__
    return ours and CLAIMS.get(claim.name) is claim and REVISIONS.get(revision.name) is revision


def _tasks(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Put together what shares work: the claims of a revision; the rest by claim, and first, for it is slower.

    What is tested is compiled for each revision, which is slowest of all, and is shared by two.
    """
    tasks: dict[str, list[Pair]] = {}
    for n, (claim, revision) in enumerate(sorted(pairs, key=lambda pair: pair[0].strength == PROVED)):
        name = f"{claim.name} {n % 2}" if claim.strength == TESTED else claim.name
        tasks.setdefault(revision.name if claim.strength == PROVED else name, []).append((claim, revision))
    return list(tasks.values())


@typed()
def prove_all(
    names: str | Claim | Iterable[str | Claim] = (),
    revisions: str | Revision | Iterable[str | Revision] = (),
    jobs: int | None = None,
    timeout_ms: int = TIMEOUT_MS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Ask all claims, or those given, of all revisions of which something is expected, or of those given.

    The work is spread over `jobs` processes, as many as there are cores; claims and revisions that were made
    elsewhere, such as in a notebook, are asked in this one.  The solver thinks for `timeout_ms` about a question
    before it gives up.  `progress` is told how many of how many are answered.
    A script that calls this keeps it under `if __name__ == "__main__":`, for the processes import the script.
    Raises InputError if there is no such claim or revision.
    """
    if (jobs is not None and jobs < 1) or timeout_ms < 1:
        raise InputError(f"jobs={jobs}, timeout_ms={timeout_ms}: numbers from 1 on are wanted")
    pairs = asked(names, revisions)
    tell = progress or (lambda done, of: None)
    away = _tasks([pair for pair in pairs if _is_known(*pair)])
    jobs = min(jobs or cores(), len(away))
    answers: dict[tuple[str, str], Answer] = {}

    def note(found: Iterable[Answer]) -> None:
        answers.update(((a.claim.name, a.revision.name), a) for a in found)
        tell(len(answers), len(pairs))

    if jobs > 1:
        from concurrent.futures import ProcessPoolExecutor, as_completed  # WebAssembly has no processes
        from multiprocessing import get_context

        from kvm_pf.common.processes import leave_with_parent, spared

        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=leave_with_parent) as pool:
            names_of = [[(claim.name, revision.name) for claim, revision in task] for task in away]
            with spared():
                futures = {
                    pool.submit(_ask, names, timeout_ms): task
                    for task, names in zip(away, names_of, strict=True)
                }
            for future in as_completed(futures):
                note(map(_answer, futures[future], future.result()))
    with SOLVER, patience(timeout_ms):
        for claim, revision in pairs:
            if (claim.name, revision.name) not in answers:
                note([prove(claim, revision)])
    return [answers[claim.name, revision.name] for claim, revision in pairs]
