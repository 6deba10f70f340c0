# SPDX-License-Identifier: GPL-2.0-only
"""The scenario player: a recorded guest, one operation at a time, the kernel beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kvm_pf.bits import describe
from kvm_pf.common.typed import typed
from kvm_pf.conformance.expect import Why
from kvm_pf.conformance.fault_rows import FaultRow, columns
from kvm_pf.conformance.follow import Follow, Seen, carried, scenario_of
from kvm_pf.conformance.placement import kernel_of
from kvm_pf.conformance.recordings import Recording, Scenario, Step, read_recording
from kvm_pf.conformance.vm_state import VmState
from kvm_pf.guest.machine import Taken
from kvm_pf.revisions import Revision, get
from kvm_pf.show.markup import Html, beside, bold, code, element, halves, join, table
from kvm_pf.show.widgets.panel import Panel, line, place, show
from kvm_pf.state import PAGE_SHIFT, PAGE_SIZE


@typed()
def scenario_player(
    recording: str | Path | Recording, scenario: str, revision: str | Revision | None = None
) -> ScenarioPlayer:
    """Return a player of one scenario of a recording.

    `recording` is the name of one that the package carries ("posted-on-6.12"), a directory, or one that was read;
    `revision` instead of the one that its kernel stands for.  Raises InputError if there is no such recording or
    scenario, or if its kernel stands for no revision.
    """
    if not isinstance(recording, Recording):
        recording = read_recording(carried(recording))
    chosen = kernel_of(recording)[0] if revision is None else get(revision)
    return ScenarioPlayer(recording, scenario_of(recording, scenario), chosen)


class Place(NamedTuple):
    """One place of the player: an operation of user space, and one fault of it if it has any."""

    step: Step
    state: VmState  # what the operation leaves behind of slots and attributes
    seen: Seen | None
    number: int  # of the fault in its operation, from 1
    of: int


class ScenarioPlayer(Panel):
    """A recorded scenario; `place` is the current place.  Controls: place, back, forth."""

    def __init__(self, recording: Recording, scenario: Scenario, revision: Revision) -> None:
        self.recording, self.scenario, self.revision = recording, scenario, revision
        self.places = list(_places(recording, scenario, revision))
        controls = place("place", "which operation or fault is shown", len(self.places))
        super().__init__(controls, [line(*controls.values())], wide=True)
        self.react("place")

    @property
    def place(self) -> Place:
        """The current place."""
        number: int = self.controls["place"].value
        return self.places[number - 1]

    def react(self, name: str) -> None:
        """Show the place that the slider stands at."""
        if name == "place":
            self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield the operation, guest memory, and the fault."""
        here = self.place
        count = f"fault {here.number} of {here.of}" if here.seen else "no fault"
        told = ", ".join(
            f"{name} {each}" for name, each in (here.step.result or {}).items() if name in ("rc", "errno")
        )
        left = [
            element(
                "p", bold(join([f"operation {here.step.number}: ", code(here.step.op)])), f"; {count}",
                f"; user space got {told}" if told else "",
            ),
            memory(here.state, here.seen.row.state_gfn if here.seen else None),
        ]  # fmt: skip
        if here.seen is None:
            yield from left
            return
        left.append(element("p", "; ".join(_story(here.seen.row, here.seen.taken))))
        yield halves(left, _fault(here.seen, self.revision))

    def __repr__(self) -> str:
        return f"scenario_player({self.recording.name}, {self.scenario.name}, place {self.controls['place'].value})"


def _places(recording: Recording, scenario: Scenario, revision: Revision) -> Iterator[Place]:
    """Run the scenario in the model and yield its places."""
    replay = Follow(recording, revision)
    replay.scenario(scenario)
    state = VmState()
    for step in scenario.steps:
        state = state.copy().after(step, scenario.name)
        here = (scenario.name, step.number)
        faults = [seen for seen in replay.seen.values() if (seen.row.scenario, seen.row.step) == here]
        for number, seen in enumerate(faults or [None], 1):
            yield Place(step, state, seen, number, len(faults))


def memory(state: VmState, fault: int | None = None) -> Html:
    """List guest memory in pieces of one slot, private or shared; of a fault, the piece and its neighbours."""
    ranges = [(slot.gpa, slot.size) for slot in state.slots.values()]
    ranges += [(gpa, size) for gpa, size, _ in state.attributes]
    ranges += [(fault << PAGE_SHIFT, PAGE_SIZE)] if fault is not None else []
    edges = sorted({edge for gpa, size in ranges for edge in (gpa, gpa + size)})
    parts: list[tuple[int, str, str, str]] = []
    for start, end in pairwise(edges):
        gfn = start >> PAGE_SHIFT
        slot, private = state.slot(gfn), state.private(gfn)
        here = fault is not None and start <= fault << PAGE_SHIFT < end
        kind = "▨ private" if private else "□ shared" if slot else ""
        where = f"slot {slot.id} {','.join(slot.flags)}".rstrip() if slot else "no slot of user space"
        part = (start, kind, where, f"▼ gfn {fault:#x}" if here else "")
        if not parts or parts[-1][1:] != part[1:]:
            parts.append(part)
    hit = next((n for n, part in enumerate(parts) if part[3]), None)
    if hit is not None:
        parts = parts[max(0, hit - 2) : hit + 3]
    rows = [[f"{start:#x}", where, bold(kind), bold(here)] for start, kind, where, here in parts]
    caption = "guest memory" if hit is None else "guest memory around the fault"
    return table(caption, ("from", "slot", "declared", ""), rows) if parts else Html()


def _fault(seen: Seen, revision: Revision) -> Iterator[Html]:
    """Yield every recorded value beside the model's, and how the KVM_RUN ended."""
    row = seen.row
    if seen.taken is None:
        yield element("p", "The trace does not show enough to run the model.")
        return
    order = list(columns())
    agree: list[list[object]] = []
    differ: list[list[object]] = []
    rest: dict[str, list[str]] = {}
    for name, told, want in sorted(seen.recorded(), key=lambda cell: order.index(cell[0])):
        if isinstance(want, Why):
            rest.setdefault(want.reason, []).append(f"{name} {show(told)}")
        elif told == want:
            agree.append([code(name), seen.shown(name, told)])
        else:
            differ.append([bold(code(name)), seen.shown(name, told), bold(f"✗ {seen.shown(name, want)}")])
    if differ:
        yield table("values that differ", ("value", "kernel", "model"), differ)
    caption = f"{len(agree)} values agree, {len(differ)} differ ({revision.name})"
    if agree:
        yield table(caption, ("value", "kernel and model") * 2, beside(agree, 2))
    for reason, names in rest.items():
        yield element("p", f"not compared, {reason}: {', '.join(names)}")
    if row.last_of_run:
        ended = [f"{name} {show(getattr(row, name))}" for name in ENDED if getattr(row, name) is not None]
        yield element("p", f"KVM_RUN then ended: {', '.join(ended)}")


ENDED = ("rc", "errno", "exit_name", "memory_fault_gpa", "memory_fault_size", "memory_fault_flags")


def _story(row: FaultRow, taken: Taken | None) -> Iterator[str]:
    """Yield in words what the CPU reported, what was changed on purpose, what the path made of it."""
    yield row.source + (f": the CPU reported {row.cpu_code:#x}" if row.cpu_code is not None else "")
    if row.inject_at:
        yield f"changed on purpose at {row.inject_at}"
    if taken and taken.outcome:
        yield f"error code {taken.error_code:#x} ({describe(taken.error_code)})"
        fault = taken.handled.fault
        if taken.handled.called and fault.error_code != taken.error_code:
            yield f"the page-fault handler got {fault.error_code:#x} ({describe(fault.error_code)})"
    if taken and taken.warns:
        yield f"WARN: {', '.join(taken.warns)}"
