# SPDX-License-Identifier: GPL-2.0-only
"""What the pages of the walkthrough show: a step before and after, what it does, what became of claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kvm_pf.conformance.expect import Why
from kvm_pf.conformance.follow import Seen, carried, scenario_of, shown
from kvm_pf.conformance.recordings import L2_BLOCKS, read_recording
from kvm_pf.guest.machine import Access, Machine
from kvm_pf.patch.diff import step_diff
from kvm_pf.revisions import Revision, get
from kvm_pf.run.batch import evaluate
from kvm_pf.run.inputs import answer, case_values
from kvm_pf.run.watch import Record, explain
from kvm_pf.show.diff import diff_html
from kvm_pf.show.markup import Html, Shown, bold, code, element, framed, join, table

if TYPE_CHECKING:
    import pandas as pd

    from kvm_pf.proof.ask import Answer, Witness
    from kvm_pf.proof.claims import Claim

__all__ = (
    "Asked", "Claimed", "answers", "ask", "beside", "change", "claims", "differ", "faults", "folded",
    "log", "results", "story", "witness",
)  # fmt: skip


def folded(summary: str, shown: Shown) -> Shown:
    """Show one line, `summary`, which opens to what would fill a screen."""
    return Shown(repr(shown), framed(element("details", element("summary", summary), shown.html)))


def change(step: str, a: str | Revision = "before", b: str | Revision = "posted") -> Shown:
    """Show a step of two revisions side by side; `step` as in `kvm_pf.patch.diff.source_lines`."""
    left, right = get(a).name, get(b).name
    return Shown(f"{step}, {left} and {right}", diff_html(step_diff(step, a, b), left, right))


class Asked(Shown):
    """What one step did with several faults in several revisions: `records[fault, revision]`, None if not reached."""

    def __init__(self, step: str, records: Mapping[tuple[str, str], Record | None]) -> None:
        self.records = records
        names = list(dict.fromkeys(revision for _, revision in records))
        rows = [
            [bold(fault), *(_told(records[fault, name]) for name in names)]
            for fault in dict.fromkeys(fault for fault, _ in records)
        ]
        super().__init__(f"{step} of {', '.join(names)}", framed(table("", (code(step), *names), rows)))


def _told(record: Record | None) -> object:
    if record is None:
        return "not reached"
    why = join(record.why.split("|"), Html("|<wbr>"))
    if record.before is None or record.after is None:
        return why
    after = "" if record.after == record.before else f" → {record.after:#x}"
    return join([code(f"{record.before:#x}{after}"), why], Html("<br>"))


def ask(step: str, given: Mapping[str, object], *revisions: str | Revision, **state: object) -> Asked:
    """Ask what a step does with faults: each its own row, each revision (before and posted if none) its own column.

    `given` maps a name of the fault to its error code, or to all of it that `explain` takes; `state` is common
    to all.  Raises InputError as `explain` does.
    """
    records: dict[tuple[str, str], Record | None] = {}
    for name, fault in given.items():
        case: dict[str, Any] = dict(fault) if isinstance(fault, Mapping) else {"error_code": fault}
        for revision in map(get, revisions or ("before", "posted")):
            steps = explain(revision=revision, **{**state, **case}).steps
            records[name, revision.name] = next((each for each in steps if each.step == step), None)
    return Asked(step, records)


class Claimed(Shown):
    """What became of claims for revisions, each claim with its sentence: `answers[claim, revision]`."""

    def __init__(self, answers: Mapping[tuple[str, str], Answer]) -> None:
        self.answers = answers
        names = list(dict.fromkeys(revision for _, revision in answers))
        told = {answer.claim.name: answer.claim.statement for answer in answers.values()}
        rows = [
            [_sentence(claim, told[claim]), *(_answer(answers[claim, r]) for r in names)] for claim in told
        ]
        super().__init__(
            f"{len(told)} claim{'s' * (len(told) > 1)} of {', '.join(names)}",
            framed(table("", ("claim", *names), rows)),
        )


def _sentence(name: str, statement: str) -> Html:
    return join([statement, code(name)], Html("<br>"))


def _answer(answer: Answer) -> object:
    if answer.status != "fails":
        return f"{answer.status}, {answer.strength}" if answer.holds else answer.status
    if answer.witness is None:  # a claim that is run, not proved
        return bold("fails")
    smallest = join(str(answer.witness).split("|"), Html("|<wbr>"))
    return join([bold("fails"), smallest], Html("<br>"))


def claims(which: Iterable[str | Claim], *revisions: str | Revision) -> Claimed:
    """Ask claims of revisions (posted if none): a row for each claim, with its sentence; a column for each revision.

    An answer is holds, empty (there is no state that the claim speaks of) or unknown; or fails, with the smallest state
    in which it does, as far as it is unlike the defaults.  Raises InputError for what is no claim or no revision.
    """
    from kvm_pf.proof.ask import find, prove

    asked = [prove(claim, r) for claim in map(find, which) for r in map(get, revisions or ("posted",))]
    return Claimed({(answer.claim.name, answer.revision.name): answer for answer in asked})


def witness(found: Witness) -> Shown:
    """Show a state in which a claim is false, and where its steps part from those of a kernel that keeps the claim."""
    from kvm_pf.show.widgets.claims import witness_parts

    return Shown(f"a witness against {found.claim.name}", framed(*witness_parts(found)))


def answers(found: pd.DataFrame) -> Shown:
    """Show a table of `kvm_pf.proof.lattice`: a row for each claim, with its sentence; a column for each revision."""
    from kvm_pf.proof.ask import find

    rows = [
        [
            _sentence(claim, find(claim).statement),
            *(bold(said) if said == "fails" else said for said in found[claim]),
        ]
        for claim in map(str, found)
    ]
    return Shown(
        f"{len(rows)} claims of {len(found)} revisions", framed(table("", ("claim", *found.index), rows))
    )


def results(
    columns: str,
    given: Mapping[str, Mapping[str, Any]],
    *revisions: str | Revision,
    kind: str = "cases",
    **state: Any,
) -> pd.DataFrame:
    """Run faults in several revisions (posted if none) and show some of what comes of them.

    `columns` are output columns of the tables of `kind` (cases, sources or faultin), parted by blanks; `given` maps a
    name of the fault to its inputs, as `explain` or the table takes them; `state` is common to all.  One row for each
    fault and revision; 64-bit values in hexadecimal from 10 up, "–" for what was not reached, answers of the MMIO path
    (mmio_ret) and of the fault-in (ret) by name.
    """
    import pandas as pd

    rows = {}
    for name, inputs in given.items():
        for revision in map(get, revisions or ("posted",)):
            values = {**state, **inputs}
            if kind == "cases":
                values = dict(case_values(revision, **values))
            got = _named(evaluate(pd.DataFrame([values], dtype=object), revision, kind=kind), kind, revision)
            rows[name, revision.name] = [_said(got[column].iloc[0]) for column in columns.split()]
    index = pd.MultiIndex.from_tuples(list(rows), names=["fault", "revision"])
    frame = pd.DataFrame(list(rows.values()), index, columns.split())
    return frame if len(revisions) > 1 else frame.droplevel("revision")


def differ(frame: pd.DataFrame, a: str | Revision, b: str | Revision) -> pd.DataFrame:
    """Run a table of faults in two revisions and count the rows in which each output that both have differs.

    Columns: output (index), rows, and for each revision what it gave in the first of them, as an example.
    Answers of the MMIO path are compared by name: their numbers changed.
    """
    import pandas as pd

    one, two = (_named(evaluate(frame, each), "cases", get(each)) for each in (a, b))
    rows = []
    for column in one.columns.intersection(two.columns):
        known = one[column].notna(), two[column].notna()
        unlike = (known[0] != known[1]) | (known[0] & known[1] & (one[column] != two[column]).fillna(False))
        if unlike.any():
            first = [_said(each[column][unlike].iloc[0]) or "none" for each in (one, two)]
            rows.append((column, int(unlike.sum()), *first))
    return pd.DataFrame(
        rows, columns=["output", "rows", f"{get(a).name}, e.g.", f"{get(b).name}, e.g."]
    ).set_index("output")


def _named(frame: pd.DataFrame, kind: str, revision: Revision) -> pd.DataFrame:
    """Put names for the numbers of answers in the outputs of a table."""
    column = {"cases": "mmio_ret", "faultin": "ret"}.get(kind, "")
    if column not in frame:
        return frame
    return frame.assign(
        **{column: frame[column].map(lambda value: answer(int(value), revision), na_action="ignore")}
    )


def _said(value: Any) -> str:
    """Write a value of a table: "–" for what was not reached, 64-bit values in hexadecimal."""
    import pandas as pd

    if pd.isna(value):
        return "–"
    return shown(int(value)) if getattr(value, "dtype", "") == "uint64" else str(value)


def faults(seen: Iterable[Seen], *names: str) -> pd.DataFrame:
    """Put recorded faults under each other: columns `names` as the kernel recorded them.

    Columns: step (index), op, those named (as `Seen.shown` writes them); and, if the model does not agree with all of
    them, agree: how many of all the values of the fault that can be compared are the model's.
    """
    import pandas as pd

    rows, agree = [], []
    for each in seen:
        compared = [kernel == model for _, kernel, model in each.recorded() if not isinstance(model, Why)]
        agree.append((sum(compared), len(compared)))
        rows.append(
            (each.row.step, each.row.op, *(each.shown(name, getattr(each.row, name)) for name in names))
        )
    frame = pd.DataFrame(rows, columns=["step", "op", *names]).set_index("step")
    if all(agreed == of for agreed, of in agree):
        return frame
    return frame.assign(agree=[f"{agreed} of {of}" for agreed, of in agree])


def story(recording: str, scenario: str, *steps: int) -> pd.DataFrame:
    """Tell what user space did in some steps of a recorded scenario, and what came back to it.

    Columns: step (index), op; rc and errno of the system call; exit and rax, with what the guest came to rest, and
    what it then held in that register, if it ran: L2's, if that ran.  Raises InputError if there is no such scenario.
    """
    import pandas as pd

    rows = []
    for step in scenario_of(read_recording(carried(recording)), scenario).steps:
        if step.number in steps:
            told = step.result or {}
            runs = [each for name, each in told.items() if name.startswith("run")]
            last = runs[-1] if runs else told
            block = next((block for block in L2_BLOCKS if block in told), "")
            l2 = told.get(block, {})
            *values, rax = ({**last, **l2}.get(name, "") for name in ("rc", "errno", "name", "rax"))
            rows.append((step.number, step.op, *values, hex(int(rax, 0)) if rax else rax))
    return pd.DataFrame(rows, columns=["step", "op", "rc", "errno", "exit", "rax"]).set_index("step")


def beside(recording: str, scenario: str, steps: Iterable[int], machine: Machine) -> pd.DataFrame:
    """Run a recorded scenario's operations on a machine, and set what both say of some steps side by side.

    Columns: step (index), op; kernel, rax: how the recorded guest came to rest, and with what in that register, L2's
    if it ran; machine: how the access ended there; reached: which copy of the page it reached, shared or private;
    is_private and emulated: of its last fault; ahead: gfns that were mapped ahead with it.  Raises InputError if
    there is no such scenario.
    """
    import pandas as pd

    wanted = set(steps)
    told = story(recording, scenario, *wanted)
    rows = {}
    for step in scenario_of(read_recording(carried(recording)), scenario).steps:
        done = machine.run(step.op)
        access = done if isinstance(done, Access) else None
        last = access.faults[-1] if access and access.faults else None
        if step.number in wanted:
            row = {"op": step.op, "kernel": told["exit"][step.number], "rax": told["rax"][step.number]}
            row |= {
                "machine": access.exit.reason if access else "",
                "reached": (access and access.copy) or "",
            }
            handler, outcome = (last.handler, last.outcome) if last else (None, None)
            row["is_private"] = str(int(handler.fault.is_private)) if handler else ""
            row["emulated"] = str(int(outcome.emulation.called)) if outcome else ""
            row["ahead"] = " ".join(map(hex, handler.prefetched)) if handler else ""
            rows[step.number] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")


def log(recording: str) -> list[str]:
    """List the WARNs in the kernel log of a recording that the package carries, in order: function, file and line."""
    found = read_recording(carried(recording)).warnings
    return [f"WARNING in {warn.function}, {warn.file}:{warn.line}" for warn in found]
