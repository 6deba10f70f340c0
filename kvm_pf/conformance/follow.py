# SPDX-License-Identifier: GPL-2.0-only
"""Follow recorded faults one by one: what the kernel recorded beside what the model says, and the steps between."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.common.text import one_line, write_number
from kvm_pf.common.typed import typed
from kvm_pf.conformance.expect import Why
from kvm_pf.conformance.fault_rows import FaultRow, columns
from kvm_pf.conformance.join import walk
from kvm_pf.conformance.placement import kernel_of
from kvm_pf.conformance.recordings import Recording, Scenario, read_recording
from kvm_pf.conformance.replay import Replay, ReplayReport
from kvm_pf.guest.machine import Taken
from kvm_pf.revisions import Revision, get
from kvm_pf.run.inputs import answer
from kvm_pf.run.watch import Explanation

if TYPE_CHECKING:
    import pandas as pd


ANSWERS = ("fast_ret", "noslot_ret", "faultin_ret", "handler_ret")
"""The columns that hold an answer of the page-fault handler, or of a part of it."""


class Seen(NamedTuple):
    """One recorded fault: its row, how the model took it, and each compared value (name, kernel's, model's)."""

    row: FaultRow
    taken: Taken | None  # None: the trace does not show what the CPU reported
    cells: tuple[tuple[str, object, object], ...]
    revision: Revision

    @property
    def explanation(self) -> Explanation:
        """The model's steps and outcome, for the pictures and widgets that show one fault.

        Raises InputError if the fault never came to kvm_mmu_page_fault().
        """
        taken = self.taken
        if taken is None or taken.outcome is None:
            raise InputError(
                f"fault {self.row.fault} of {self.row.scenario} never came to kvm_mmu_page_fault()"
            )
        title = f"{self.row.recording}, {self.row.scenario}, step {self.row.step}: {self.row.op}"
        return Explanation(self.revision, title, taken.outcome, list(taken.records))

    def recorded(self) -> Iterator[tuple[str, object, object]]:
        """Yield the cells of which the kernel showed a value."""
        for name, kernel, model in self.cells:
            if kernel is not None:
                yield name, kernel != 0 if name == "in_slot" else kernel, model  # a pointer: found or not

    def shown(self, name: str, value: object) -> str:
        """Write a value of the column `name`: an answer by its name, any other as `shown` does."""
        return answer(value, self.revision) if name in ANSWERS and isinstance(value, int) else shown(value)

    def table(self, prefix: str = "") -> pd.DataFrame:
        """Set the kernel's values beside the model's, for the columns that begin with `prefix`.

        Columns: value (index), event (where the kernel showed it), kernel, model (as `Seen.shown` writes them),
        agree ("yes", "no", or why it cannot be said).
        """
        import pandas as pd

        known = columns()
        rows = []
        for name, kernel, model in sorted(self.recorded(), key=lambda cell: list(known).index(cell[0])):
            if name.startswith(prefix):
                agree = model.reason if isinstance(model, Why) else "yes" if kernel == model else "no"
                rows.append(
                    (name, known[name].source, self.shown(name, kernel), self.shown(name, model), agree)
                )
        frame = pd.DataFrame(rows, columns=["value", "event", "kernel", "model", "agree"])
        return frame.set_index("value")


def shown(value: object) -> str:
    """Write a value: a number from 10 up in hexadecimal; nothing for none."""
    if isinstance(value, Why) or value is None:
        return ""
    return write_number(value) if isinstance(value, int) else str(value)


class Follow(Replay):
    """A replay that keeps what it compares."""

    def __init__(self, recording: Recording, revision: Revision) -> None:
        report = ReplayReport(recording.name, recording.kernel, revision.name)
        super().__init__(recording, revision, report, list(walk(recording)))
        self.seen = {(row.scenario, row.fault): Seen(row, None, (), revision) for row, _ in self.rows}

    def fields(self, row: FaultRow, taken: Taken, before: int, where: str) -> None:
        """Keep the fault, then compare it."""
        self.seen[row.scenario, row.fault] = Seen(row, taken, (), self.revision)
        super().fields(row, taken, before, where)

    def cell(self, row: FaultRow, name: str, want: object, where: str) -> None:
        """Keep both values, then compare them."""
        seen = self.seen[row.scenario, row.fault]
        cell = (name, getattr(row, name), want)
        self.seen[row.scenario, row.fault] = seen._replace(cells=(*seen.cells, cell))
        super().cell(row, name, want, where)


@typed()
def carried(name: str | Path) -> Path:
    """Return the folder of a recording: one that the package carries ("posted-on-6.12"), or any other."""
    folder = data_dir() / "recordings" / name
    try:
        return folder if folder.is_dir() else Path(name)
    except OSError as error:
        raise InputError(f"{one_line(name, 200)}: cannot be read: {error.strerror}") from None


@typed()
def scenario_of(recording: Recording, name: str) -> Scenario:
    """Return the scenario called `name`.  Raises InputError naming those there are."""
    for scenario in recording.scenarios:
        if scenario.name == name:
            return scenario
    names = ", ".join(each.name for each in recording.scenarios)
    raise InputError(f"{recording.name} has no scenario {name!r}; it has {names}")


def _stamp(folder: Path) -> Hashable:
    """What tells whether the files of a folder are those that were read."""
    try:
        stats = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return object()  # like no other: reading will say what is wrong
    return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


@lru_cache(maxsize=4)
def _read(folder: Path, stamp: Hashable) -> Recording:
    return read_recording(folder)


@lru_cache(maxsize=16)
def _followed(
    folder: Path, stamp: Hashable, scenario: str, revision: str | Revision | None
) -> tuple[Seen, ...]:
    read = _read(folder, stamp)
    play = Follow(read, kernel_of(read)[0] if revision is None else get(revision))
    play.scenario(scenario_of(read, scenario))
    return tuple(seen for seen in play.seen.values() if seen.row.scenario == scenario)


@typed()
def follow(
    recording: str | Path, scenario: str, step: int | None = None, revision: str | Revision | None = None
) -> list[Seen]:
    """Replay one scenario and return its faults, or those of one step.

    `recording` names one that the package carries, or a directory; `revision` stands in for the one that its
    kernel says.  What was replayed last is kept, as long as the files stay as they are.  Raises InputError if there
    is no such recording, scenario or step.
    """
    folder = carried(recording)
    stamp = _stamp(folder)
    read = _read(folder, stamp)
    found = scenario_of(read, scenario)
    if step is not None and step not in {each.number for each in found.steps}:
        raise InputError(f"{read.name}, {scenario}: no step {step}; it has 1 to {found.steps[-1].number}")
    faults = _followed(folder, stamp, scenario, revision)
    return [seen for seen in faults if step is None or seen.row.step == step]


def mmio_moments(seen: Iterable[Seen], gfn: int) -> list[tuple[int | None, int, int, bool | None]]:
    """List when the MMIO SPTE of a gfn was looked at or made, as `kvm_pf.show.plot.mmio_generation` draws it.

    Each moment: step, memslots' generation, generation in the SPTE, whether they agree (None: it is being made).
    """
    moments: list[tuple[int | None, int, int, bool | None]] = []
    for row in (each.row for each in seen):
        if row.check_kvm_gen is not None and row.check_spte_gen is not None and row.state_gfn == gfn:
            moments.append((row.step, row.check_kvm_gen, row.check_spte_gen, row.check_valid))
        if row.mark_gen is not None and row.mark_gfn == gfn:
            moments.append((row.step, row.mark_gen, row.mark_gen, None))
    return moments


__all__ = ("Follow", "Seen", "answer", "carried", "follow", "mmio_moments", "scenario_of")
