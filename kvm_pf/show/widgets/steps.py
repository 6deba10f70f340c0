# SPDX-License-Identifier: GPL-2.0-only
"""The step player: one fault, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator

from kvm_pf.bits import describe
from kvm_pf.common.typed import typed
from kvm_pf.run.watch import Explanation, Record, warn_names
from kvm_pf.show.markup import Html, bold, changed, cited, code, halves, join, table
from kvm_pf.show.widgets.hunks import lines_table
from kvm_pf.show.widgets.panel import Panel, line, place, show
from kvm_pf.state import Lookups


@typed()
def step_player(explanation: Explanation) -> StepPlayer:
    """Return a player of the records of one fault, as `kvm_pf.explain` returns them."""
    return StepPlayer(explanation)


class StepPlayer(Panel):
    """The steps of `explanation`; `record` is the current one.  Controls: step, back, forth."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation
        controls = place("step", "which step is shown", len(explanation.steps))
        super().__init__(controls, [line(*controls.values())], wide=True)
        self.react("step")

    @property
    def record(self) -> Record:
        """The current step."""
        number: int = self.controls["step"].value
        return self.explanation.steps[number - 1]

    def react(self, name: str) -> None:
        """Show the step that the slider stands at."""
        if name == "step":
            self.draw()

    def spoken(self, shown: Html) -> str:
        """Return the current step and what it did."""
        return f"{self.record.step}: {self.record.why}"

    def parts(self) -> Iterator[Html]:
        """Yield all steps, then the current one."""
        here = self.record
        rows = []
        for record in self.explanation.steps:
            name = "\u00a0\u00a0\u00a0" * record.depth + record.step
            cells: list[object] = ["▶" if record is here else "", name, record.why]
            rows.append([bold(cell) for cell in cells] if record is here else cells)
        yield halves([table(self.explanation.title, ("", "step", "what it did"), rows)], _detail(here))

    def __repr__(self) -> str:
        code_ = self.explanation.steps[0].before or 0
        return (
            f"step_player({self.explanation.revision.name}, {code_:#x}, step {self.controls['step'].value})"
        )


def _detail(record: Record) -> Iterator[Html]:
    rows: list[tuple[object, object]] = [
        (join(["given ", code(name)]), show(value)) for name, value in record.given.items()
    ]
    rows.append(("returned", _returned(record)))
    if record.before is not None and record.after is not None:
        rows.append(("error code before", _named(record.before)))
        rows.append(("error code after", changed(_named(record.after), record.after != record.before)))
    rows.append(("why", record.why))
    rows.append(("read in", cited(record.source) or "–"))
    yield table(join(["this step: ", code(record.step)]), (), rows)
    if record.lines:
        yield lines_table("the patch's lines that it stands for", record.lines)


def _returned(record: Record) -> str:
    if record.step in ("sanitize", "reserved_fault"):
        value, warns = record.result
        return f"{show(value)}, {f'WARN {warn_names(warns)}' if warns else 'no warning'}"
    if (
        isinstance(record.result, tuple)
        and isinstance(record.result[-1], Lookups)
        and len(record.result) == 2
    ):
        value, lookups = record.result
        return f"{show(value)}, {f'looked up gfn {lookups.gfn:#x}' if lookups.count else 'no look-up'}"
    return show(record.result)


def _named(value: int) -> Html:
    return join([code(f"{value:#x}"), " ", describe(value)])
