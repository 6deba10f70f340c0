# SPDX-License-Identifier: GPL-2.0-only
"""The faults of two of the kernel's own selftests, as scenarios for a `Machine`.

The kernel tests private memory with guests of its own.  `private_mem_kvm_exits_test` lets a guest read private
memory that is not there, and wants a memory-fault exit.  `private_mem_conversions_test` converts ranges back and
forth, and wants none: after each conversion the guest must find the other copy of the page.  What they do to memory
is told here in the language of the recordings' scenarios, one operation a line, each with the end that the selftest
asks for.  Their patterns of bytes are left out: a machine has no contents, but it knows from which of the two
copies a page came.

Source: Linux `tools/testing/selftests/kvm/x86_64/private_mem_kvm_exits_test.c`,
`tools/testing/selftests/kvm/x86_64/private_mem_conversions_test.c`, Debian linux-source-6.12 6.12.117-1~deb12u1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvm_pf.guest.machine import Access, Machine
from kvm_pf.state import PAGE_SIZE

MIB_2 = 0x200000
EXITS_SLOT, EXITS_GPA = 10, 0xC0000000
DATA_SLOT, DATA_GPA, DATA_SIZE = 10, 1 << 32, MIB_2 + PAGE_SIZE
DATA_SLOT_SIZE = 2 * MIB_2  # the data, aligned to 2 MiB
RANGES = ((0, PAGE_SIZE), (0, MIB_2), (PAGE_SIZE, PAGE_SIZE), (PAGE_SIZE, MIB_2), (MIB_2, PAGE_SIZE))
"""The ranges that are converted in turn: offset and size."""


class Line(NamedTuple):
    """One operation, and what the selftest asks of it: how it ends, and from which copy the page comes."""

    op: str
    ends: str = ""  # "" for a system call, which succeeds
    private: bool = False


class Ran(NamedTuple):
    """What became of a line: how it ended, its faults, and whether they were private; user space's exit."""

    op: str
    wanted: str
    ended: str
    faults: int
    private: str  # "yes", "no", "" without a fault, "mixed"
    gpa: str
    flags: str
    agrees: bool


def deleted_slot() -> Iterator[Line]:
    """Read private memory, and once more after its slot was deleted: a memory fault that says private."""
    yield Line("vm swprot")
    yield Line(f"slot {EXITS_SLOT} {EXITS_GPA:#x} {PAGE_SIZE:#x} gmem")
    yield Line(f"attr {EXITS_GPA:#x} {PAGE_SIZE:#x} private")
    yield Line(f"r {EXITS_GPA:#x}", "done", True)
    yield Line(f"slot {EXITS_SLOT} {EXITS_GPA:#x} 0 -")
    yield Line(f"r {EXITS_GPA:#x}", "memory-fault", True)


def not_private_slot() -> Iterator[Line]:
    """Read memory that was declared private, in a slot that has none: a memory fault that says private."""
    yield Line("vm swprot")
    yield Line(f"slot {EXITS_SLOT} {EXITS_GPA:#x} {PAGE_SIZE:#x} -")
    yield Line(f"attr {EXITS_GPA:#x} {PAGE_SIZE:#x} private")
    yield Line(f"r {EXITS_GPA:#x}", "memory-fault", True)


def _pages(verb: str, gpa: int, size: int, private: bool, every: int) -> Iterator[Line]:
    """Touch every `every`th page of a range, and its last."""
    last = gpa + size - PAGE_SIZE
    for page in dict.fromkeys([*range(gpa, last, every * PAGE_SIZE), last]):
        yield Line(f"{verb} {page:#x}", "done", private)


def _convert(gpa: int, size: int, private: bool, punch: bool) -> Iterator[Line]:
    """What user space does at the guest's hypercall: punch a hole if the guest asks for it, then declare."""
    if punch and not private:
        yield Line(f"punch {DATA_SLOT} {gpa - DATA_GPA:#x} {size:#x}")
    yield Line(f"attr {gpa:#x} {size:#x} {'private' if private else 'shared'}")


def conversions(punch: bool, every: int = 64) -> Iterator[Line]:
    """Convert each of RANGES to private and back, and write to both copies.

    `punch`: freeing private pages as they become shared, as the selftest does in its second round.  Of a range
    every `every`th page is touched, and the last; 1 for all, as the selftest does.
    """
    yield Line("vm swprot")
    yield Line(f"slot {DATA_SLOT} {DATA_GPA:#x} {DATA_SLOT_SIZE:#x} gmem")
    yield from _pages("w", DATA_GPA, DATA_SIZE, False, every)
    for offset, size in RANGES:
        gpa = DATA_GPA + offset
        yield from _pages("w", gpa, size, False, every)
        yield from _convert(gpa, size, True, punch)
        yield from _pages("w", gpa, PAGE_SIZE, True, every)
        yield from _pages("r", gpa, PAGE_SIZE, True, every)
        if size == PAGE_SIZE:  # the rest is shared as before
            rest = (DATA_GPA, offset), (gpa + size, DATA_SIZE - offset - size)
            for start, length in rest:
                yield from _pages("r", start, length, False, every) if length else ()
        yield from _convert(gpa, size, False, punch)
        yield from _pages("w", gpa, size, False, every)
        yield from _convert(DATA_GPA, DATA_SIZE, False, True)


def punched_holes(precise: bool, every: int = 64) -> Iterator[Line]:
    """Free private pages without converting them: the guest finds new private ones.

    `precise`: only the range that is freed was touched before, not all the data.
    """
    yield Line("vm swprot")
    yield Line(f"slot {DATA_SLOT} {DATA_GPA:#x} {DATA_SLOT_SIZE:#x} gmem")
    yield from _convert(DATA_GPA, DATA_SIZE, True, False)
    for offset, size in RANGES:
        gpa = DATA_GPA + offset
        yield Line(f"punch {DATA_SLOT} 0x0 {DATA_SIZE:#x}")
        yield from _pages("w", *((gpa, size) if precise else (DATA_GPA, DATA_SIZE)), True, every)
        yield Line(f"punch {DATA_SLOT} {offset:#x} {size:#x}")
        yield from _pages("r", gpa, size, True, every)


SELFTESTS = {
    "private_mem_kvm_exits_test": {
        "private access, slot deleted": deleted_slot,
        "private access, slot without private memory": not_private_slot,
    },
    "private_mem_conversions_test": {
        "conversions": lambda: conversions(False),
        "conversions that free private pages": lambda: conversions(True),
        "holes in private memory, all of it in use": lambda: punched_holes(False),
        "holes in private memory, the range alone in use": lambda: punched_holes(True),
    },
}
"""The selftests by their names in the kernel's tree, and the scenarios of each."""


def run(lines: Iterable[Line], machine: Machine) -> Iterator[Ran]:
    """Carry out a scenario, and yield what became of each line."""
    for line in lines:
        done = machine.run(line.op)
        if not isinstance(done, Access):
            yield Ran(line.op, "0", str(done), 0, "", "", "", done == 0)
            continue
        kinds = {fault.handled.fault.is_private for fault in done.faults if fault.handled.called}
        private = ("yes" if kinds == {True} else "no" if kinds == {False} else "mixed") if kinds else ""
        told, exit_ = line.ends == "memory-fault", done.exit.memory_fault
        agrees = done.exit.reason == line.ends and kinds <= {line.private}
        if told:
            gpa = int(line.op.split()[1], 0)
            agrees = agrees and (exit_.gpa, exit_.size, exit_.flags) == (gpa, PAGE_SIZE, 8 * line.private)
        yield Ran(
            line.op,
            line.ends,
            done.exit.reason,
            len(done.faults),
            private,
            f"{exit_.gpa:#x}" if told else "",
            str(exit_.flags) if told else "",
            agrees,
        )
