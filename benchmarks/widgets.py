# SPDX-License-Identifier: GPL-2.0-only
"""How fast the widgets answer: from a control's new value to the finished HTML, in the kernel.

Run: python benchmarks/widgets.py.  What the front end then takes to draw is not in it.  Nor are full garbage
collections: with all libraries loaded one takes as long as a slow answer, once in some hundred changes.  The last
column counts an answer in loops of plain arithmetic, which makes it comparable between machines.
Below that, verdicts: each step of EDITED is run in the widget `your_turn`, the first one with nothing prepared.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import cache
from statistics import median
from typing import Any, NamedTuple

from kvm_pf.run.watch import explain
from kvm_pf.show import widgets

LIMIT = 50
"""Milliseconds after which a person feels a wait."""

ROUNDS = 3

VERDICT = 3
"""Seconds in which an edited step is judged."""

Change = Callable[[], object]


class Measured(NamedTuple):
    """Milliseconds: to make the widget, and to answer changes: the first time, in the middle, at worst."""

    name: str
    made: float
    first: float
    usual: float
    worst: float

    def __str__(self) -> str:
        late = "" if max(self.first, self.worst) < LIMIT else f"  over {LIMIT} ms"
        times = f"{self.made:>9.0f}{self.first:>9.1f}{self.usual:>9.1f}{self.worst:>9.1f}"
        return f"{self.name:<20}{times}{self.worst / loop():>9.1f}{late}"


def milliseconds(do: Callable[[], object]) -> float:
    """Return the processor time that something takes, which other programs on the machine do not lengthen."""
    start = time.process_time()
    do()
    return 1000 * (time.process_time() - start)


@cache
def loop() -> float:
    """Return the milliseconds of a fixed loop, the median of several."""

    def once() -> None:
        n = 0
        for i in range(100_000):
            n ^= i

    return median(milliseconds(once) for _ in range(9))


def changes(widget: Any) -> Iterator[Change]:
    """Yield what a person may do: every option of every choice, clicks, steps, some codes."""

    def put(control: Any, value: object) -> Change:
        return lambda: control.set_trait("value", value)

    for control in widget.controls.values():
        kind, stood = type(control).__name__, getattr(control, "value", None)
        if kind == "Dropdown":
            yield from (put(control, value) for _, value in control._options_full)
            yield put(control, stood)
        elif kind == "Select":
            yield from (put(control, value) for _, value in control._options_full[::20])
        elif kind == "Checkbox":
            yield from (put(control, not stood), put(control, stood))
        elif kind == "BitGrid":
            yield from (put(control, f"{1 << n:#x}") for n in range(64))
            yield put(control, stood)
        elif kind == "Place":
            yield from (put(control, value) for value in range(control.min, control.max + 1))
        elif kind == "Text":
            yield from (put(control, text) for text in ("0x3000100000006", "nonsense", "8", ""))


def measure(name: str, make: Callable[[], Any]) -> Measured:
    """Make a widget and go through its changes, several times over; what is new the first time is told apart."""
    made: list[Any] = []
    making = milliseconds(lambda: made.append(make()))
    first = [milliseconds(change) for change in changes(made[0])]
    later = [milliseconds(change) for _ in range(ROUNDS) for change in changes(made[0])]
    return Measured(name, making, max(first), median(later), max(later))


EDITED = {
    ("posted", "mark_private"): ("vm.cfg_sw_protected", "vm.cfg_private_mem"),
    ("posted", "sanitize"): ("PFERR_SYNTHETIC_MASK != 0", "PFERR_PRIVATE_ACCESS != 0"),
    ("posted", "is_private"): ("!= 0", "== 0"),
    ("posted", "route"): ("mark_private(vm, cr2_or_gpa, error_code)", "error_code, NO_LOOKUP"),
    ("posted", "new_fault"): ("rsvd=err & PFERR_RSVD_MASK != 0", "rsvd=False"),
    ("before", "is_private"): ("gpa_to_gfn(cr2_or_gpa)", "gpa_to_gfn(err)"),
    ("v6_10", "npf_synthetic"): ("return error_code,", "return 0,"),
    ("v7_3", "is_private"): ("!= 0", "== 0"),
    ("v7_3", "faultin_pfn"): ("from_gmem(fault, memory.slot)", "fault.is_private"),
}
"""Changes of steps: what stands there, and what then stands instead."""

MAKERS: dict[str, Callable[[], Any]] = {
    "error_code_explorer": lambda: widgets.error_code_explorer(0x6),
    "fault_explorer": lambda: widgets.fault_explorer("posted", 0x6, vm_type="sw-protected", private=True),
    "step_player": lambda: widgets.step_player(explain(0x6, vm_type="sw-protected", private=True)),
    "hunk_viewer": widgets.hunk_viewer,
    "corpus_browser": widgets.corpus_browser,
    "scenario_player": lambda: widgets.scenario_player("posted-on-6.12", "2-swprot"),
}


def main() -> None:
    """Print a line for each widget."""
    gc.disable()
    print(f"{'milliseconds':<20}{'to make':>9}{'first':>9}{'usual':>9}{'worst':>9}{'loops':>9}")
    for name, make in MAKERS.items():
        print(measure(name, make), flush=True)
    turn = widgets.your_turn()
    for (revision, step), (was, now) in EDITED.items():
        turn.controls["revision"].value, turn.controls["step"].value = revision, step
        text = turn.controls["text"].value
        assert was in text, f"{step} of {revision} has no {was}"
        turn.controls["text"].value = text.replace(was, now)
        seconds = milliseconds(turn.controls["run"].click) / 1000
        late = "" if seconds < VERDICT else f"  over {VERDICT} s"
        found = turn.verdict
        assert found is not None, turn.message.value
        told = f"{len(found.cases)} cases, {len(found.fallen)} claims, {len(found.unasked)} not asked"
        print(f"{revision + ' ' + step:<32}{seconds:>6.1f} s  {told}{late}", flush=True)


if __name__ == "__main__":
    main()
