# SPDX-License-Identifier: GPL-2.0-only
"""Your turn: edit a step or a constant of the path; see which cases notice, which claims fall, where it shows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from difflib import get_close_matches

from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.patch.diff import compared
from kvm_pf.proof.ask import step_lines
from kvm_pf.proof.edit import constants, read_step, step_text, steps
from kvm_pf.proof.verdict import SHOWN, Verdict, in_words, verdict
from kvm_pf.revisions import REVISIONS, Revision, get
from kvm_pf.show.diff import diff_table, only_changes
from kvm_pf.show.markup import Html, bold, code, details, element, join, table
from kvm_pf.show.widgets.panel import Panel, button, choice, line, text_area

SECONDS = 8.5 if sys.platform == "emscripten" else 30.0
"""A verdict that takes longer tells what is known by then; in a page nothing else is done meanwhile."""


@typed()
def your_turn(
    step: str = "mark_private", revision: str | Revision = "posted", text: str | None = None
) -> YourTurn:
    """Return the widget, with a step or a constant of a revision to edit; with a `text` for it, judged already.

    The text is compiled and run as Python where the widget runs.  Raises InputError if there is no such revision or
    step, or if the text is none.
    """
    return YourTurn(step, get(revision), text)


class YourTurn(Panel):
    """A step to edit, and the `verdict` of the last run.  Controls: revision, step, text, run, undo."""

    uses_solver = True

    def __init__(self, step: str, revision: Revision, text: str | None) -> None:
        names = list(REVISIONS) if revision.name in REVISIONS else [*REVISIONS, revision.name]
        there = _steps(revision)
        if step not in there:
            some = get_close_matches(step, there, 3) or there
            raise InputError(f"your_turn: step={step!r:.60}: {revision.name} has {', '.join(some[:6])} …")
        self.verdict: Verdict | None = None
        self._own = {revision.name: revision}
        controls = {
            "revision": choice("revision", "whose step is edited", names, revision.name, "13em"),
            "step": choice("step", "which function or constant of the path is edited", there, step, "19em"),
            "text": text_area("the step", "edit the step, then run it", 14),
            "run": button("run", "judge the step by the cases, the claims and the solver"),
            "undo": button("as it was", "put the revision's own step back"),
        }
        above, below = line(controls["revision"], controls["step"]), line(controls["run"], controls["undo"])
        super().__init__(controls, [above, controls["text"], below], widest=480)
        controls["run"].on_click(lambda _: self.run())
        controls["undo"].on_click(lambda _: self.attempt(self.undo))
        self._written: dict[tuple[str, str], str] = {}
        if text is not None:
            self._written[self._place()] = text
        self._load()
        if text is not None:
            self._judge()

    @property
    def revision(self) -> Revision:
        """The revision whose step is edited."""
        name = self.controls["revision"].value
        return self._own.get(name) or get(name)

    def react(self, name: str) -> None:
        """Show the chosen step as the revision has it; a text is judged when it is run."""
        if name == "revision":
            control, there = self.controls["step"], _steps(self.revision)
            before = control.value
            control.options = there
            control.value = before if before in there else there[0]
        if name == "text":
            self._written[self._place()] = self.controls["text"].value
        else:
            self._load()

    def _place(self) -> tuple[str, str]:
        return self.controls["revision"].value, self.controls["step"].value

    def _load(self) -> None:
        """Show what was written for this step, or else the revision's own."""
        own = step_text(self.controls["step"].value, self.revision)
        with self.quiet():
            self.controls["text"].value = self._written.get(self._place(), own)
        self.verdict = None
        self.draw()

    def undo(self) -> None:
        """Put the revision's own step back."""
        self._written.pop(self._place(), None)
        self._load()

    def run(self) -> None:
        """Judge the step as it is written; what is wrong with it is shown instead."""
        run, self.verdict = self.controls["run"], None
        run.description = "running …"
        try:
            if not self.attempt(self._judge):
                self.draw()
        finally:
            run.description = "run"

    def _judge(self) -> None:
        base, name = self.revision, self.controls["step"].value
        written = read_step(self.controls["text"].value, name, base)
        changed = base.derive(f"{base.name} with another {name}", "", **{name: written})
        self.verdict = verdict(changed, seconds=SECONDS)
        self.draw()

    def told(self) -> Html:
        """Return what `static` shows: the step as it is written, and what came of it."""
        written = element("pre", self.controls["text"].value)
        return join([element("p", self.settings()), written, Html(self.message.value), *self.parts()])

    def parts(self) -> Iterator[Html]:
        """Yield how many notice, the cases, the claims, the witness."""
        found = self.verdict
        if found is None:
            yield element(
                "p", "Change something, and run it. What you type runs as Python where this page's Python runs, with "
                "all rights that it has there.",
            )  # fmt: skip
            return
        asked = found.claims - len(found.unasked)
        claims = f"{len(found.fallen)} of {asked} claims fall" if asked else "no claim was asked"
        claims += f", {len(found.unasked)} could not be asked" if found.unasked else ""
        yield element("p", bold(f"{len(found.cases)} of {found.asked} cases notice; {claims}."))
        yield from _witness(found)
        yield from _claims(found)
        yield from _cases(found)

    def __repr__(self) -> str:
        return f"your_turn({self.controls['step'].value!r}, {self.controls['revision'].value!r})"


def _steps(revision: Revision) -> list[str]:
    return [*sorted(steps(revision)), *constants(revision)]


def _witness(found: Verdict) -> Iterator[Html]:
    remark = f" ({found.remark})" if found.remark else ""
    yield element("p", bold("The smallest witness: "), f"{found.witness or 'none'}{remark}.")
    try:
        runs = [step_lines(records) for records in found.steps().values()]
    except InputError as error:
        yield element("p", f"Its steps cannot be shown: {error}.")
        return
    if runs:
        yield diff_table(
            list(only_changes(compared(*runs))), f"{found.base.name}, as it was", "with your step"
        )


def _claims(found: Verdict) -> Iterator[Html]:
    if found.fallen:
        rows = [(code(answer.claim.name), answer.claim.statement) for answer in found.fallen]
        yield table("claims that fall", ("claim", "what it says"), rows)
    for why, names in found.reasons.items():
        yield element("p", f"not asked or not answered: {', '.join(names)}: {why}.")
    if not found.claims:
        yield element("p", "The solver, z3, is not installed here: the cases alone were asked.")


def _cases(found: Verdict) -> Iterator[Html]:
    ids = found.cases
    if ids:
        rows = [(code(id), in_words(found.first(id))) for id in ids[:SHOWN]]
        first = f", the first {SHOWN}" if len(ids) > SHOWN else ""
        yield table(f"cases that notice{first}", ("case", "what it found"), rows)
    if len(ids) > SHOWN:
        yield details(f"and {len(ids) - SHOWN} more", element("p", join(map(code, ids[SHOWN:]), ", ")))
