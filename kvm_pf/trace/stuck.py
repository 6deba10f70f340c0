# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is stuck on: a storm in words, as far as its codes and endings tell, and what to look at next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from kvm_pf.trace.events import UNMAP
from kvm_pf.trace.storms import Ask, Storm

_MEMORY_FAULT, _EFAULT = "KVM_EXIT_MEMORY_FAULT", "to user space: error 14"

_WHY = {
    "resumed": "each time the guest is resumed with nothing mapped that this trace shows",
    "mapped": "each time it is mapped, and the mapping is gone or does not suffice when the guest comes back",
    "emulated": "each time the instruction is emulated, and the guest executes it again",
    "not shown": "how each ends was not recorded",
    "fast MMIO": "each time a device in the host's kernel takes the write: the guest drives it in a loop",
    "passed to L1": "each time it is handed to L1, whose own tables are to blame or which resolves nothing",
    "#PF injected": "each time the guest gets the #PF, and its handler resolves nothing",
}
"""Why faults of one ending come again.

Sources: what the path does, by its functions; a device in the host's kernel on the fast-MMIO bus: Linux
`Documentation/virt/kvm/api.rst`, KVM_IOEVENTFD.
"""


def hexadecimal(value: Any) -> str:
    """Write a number of a table in hexadecimal; a gap as "?"."""
    import pandas as pd

    return "?" if pd.isna(value) else f"{int(value):#x}"


def stuck_on(storm: Storm) -> str:
    """Say in words what a storm's faults are about, and why they come again as far as the outcomes tell."""
    whats = [f"{each.meaning}, at {hexadecimal(each.address)}" for each in storm.turn]
    ends = [counts.most_common(1)[0] if counts else ("not shown", 0) for counts in storm.ends]
    whys = [_why(end, each.meaning, storm) for (end, _), each in zip(ends, storm.turn, strict=True)]
    if len(set(whys)) > 1:
        told = (f"{what}: {why}" for what, why in zip(whats, whys, strict=True))
        return "; then ".join(dict.fromkeys(told))
    most = sum(count for _, count in ends)
    more = f" ({most} of {storm.faults})" if most < storm.faults else ""
    return f"{'; then '.join(dict.fromkeys(whats))}; {whys[0]}{more}"


def _why(end: str, meaning: str, storm: Storm) -> str:
    """Say why a fault of a storm comes again, by how most of its kind ended."""
    if _MEMORY_FAULT in end:
        return _converted(storm.asked, storm.conversions)
    if end == _EFAULT:
        if any(ask.private for ask in storm.asked):
            return f"KVM_RUN fails with EFAULT, a memory fault: {_converted(storm.asked, storm.conversions)}"
        return (
            "each time KVM_RUN fails with EFAULT and user space runs the vCPU again: it has no page there that can be "
            "used so, or (private memory) does not know KVM_EXIT_MEMORY_FAULT"
        )
    if end.startswith("to user space: error"):
        return f"each time KVM_RUN fails ({end.removeprefix('to user space: ')}) and user space runs the vCPU again"
    if end.startswith("emulation failed"):
        return f"KVM cannot emulate the instruction ({end})"
    if _is_mmio(end):
        if "not mapped for writing" in meaning:
            return (
                "each time the write is emulated as MMIO: the page can be read and not written, as of a read-only "
                "memslot (ROM, flash)"
            )
        return (
            "each time the access is emulated as MMIO: no memslot is there (for a write, or a read-only one), and the "
            "guest polls a device or takes the address for memory"
        )
    if end == "mapped":
        return _mapped(meaning, storm.zapped)
    return _WHY.get(end, f"each ends so: {end}")


def _is_mmio(end: str) -> bool:
    """Say whether a fault ended as MMIO, in the kernel or in user space."""
    return end.startswith("MMIO ") or end == "to user space: KVM_EXIT_MMIO"


def _mapped(meaning: str, zapped: bool) -> str:
    if "not mapped for writing" in meaning:
        return (
            "each time it is made writable, and is protected again when the guest comes back, as by dirty logging, "
            "KSM or a copy-on-write page of the host"
        )
    if "not mapped for execution" in meaning:
        return (
            "each time it is made executable, and is so no more when the guest comes back, as when KVM puts a large "
            "page without execution in its place (nx_huge_pages)"
        )
    if zapped:
        return "each time it is mapped, and entries are taken away again meanwhile"
    return _WHY["mapped"]


def _converted(asked: Counter[Ask], conversions: int) -> str:
    """Say what becomes of memory faults: `asked` counts what they ask for, beside what the page was declared.

    A memory fault asks for what the page is not; so if one page's ask for both in turn, it is converted in between.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn() (v6.8).
    """
    known = Counter({ask: n for ask, n in asked.items() if None not in (ask.private, ask.declared)})
    same = Counter({ask: n for ask, n in known.items() if ask.private == ask.declared})
    pages: dict[int, set[bool | None]] = {}
    for ask in asked:
        pages.setdefault(ask.gfn, set()).add(ask.private)
    if any({True, False} <= kinds for kinds in pages.values()) and 2 * same.total() <= known.total():
        return (
            "user space converts the page each time, to private and to shared in turn, and the guest then uses it the "
            "other way, as through two mappings of it, one encrypted and one not"
        )
    if same and 2 * same.total() > known.total():
        kind = "private" if next(iter(same)).private else "shared"
        return (
            f"user space is told of a wrong access each time, and the page is {kind} already: converting it does not "
            "help; its memslot has no guest_memfd, or guest_memfd has no page for it"
        )
    if conversions > 1:
        return "user space converts the page each time, and it is converted back before the guest comes again"
    told = "user space is told of a wrong private or shared access each time"
    if known:
        return f"{told} and does not convert the page"
    return (
        f"{told}, and the same comes again: it does not convert the page, or something converts it back (no conversion "
        "is in the trace)"
    )


def look_next(storms: Iterable[Storm]) -> list[str]:
    """Say what to record or to look at to find the causes of storms: a line each, with the addresses that it is for."""
    found: dict[str, list[str]] = {}
    for storm in storms:
        if said := _look_at(storm):
            found.setdefault(said, []).append(hexadecimal(storm.turn[0].address))
    return [f"{', '.join(dict.fromkeys(places))}: {said}" for said, places in found.items()]


def _look_at(storm: Storm) -> str | None:
    """Say what to look at where a storm is; None if the trace has what can be recorded."""
    ends = sum(storm.ends, Counter[str]())
    end = ends.most_common(1)[0][0] if ends else "not shown"
    meanings = " ".join(each.meaning for each in storm.turn)
    if _MEMORY_FAULT in end or (end == _EFAULT and any(ask.private for ask in storm.asked)):
        return "the VMM's log of conversions, and the guest's page-table entries for the page (C-bit, shared bit)"
    if end == _EFAULT:
        return "the VMM's memslot there, and its mapping (/proc/PID/smaps): is the page there, and writable?"
    if end == "mapped" and "not mapped for writing" in meanings:
        return "does a migration or another dirty log of the VM run (QEMU: info migrate), or KSM on the host?"
    if end == "mapped" and "not mapped for execution" in meanings:
        return "/sys/module/kvm/parameters/nx_huge_pages*, and kvm's statistic nx_lpage_splits"
    if end == "mapped":
        return (
            f"who takes the mapping away: record {UNMAP} and kvmmmu, and on the host compaction:*, migrate:*, ksm and "
            f"NUMA balancing (perf record -g -e {UNMAP})"
        )
    if _is_mmio(end):
        return "which device of the VMM is there, or which memslot should be (QEMU: info mtree)"
    if end.startswith("emulation failed"):
        return f"should that be memory? And the instruction at rip {hexadecimal(storm.turn[0].rip)}"
    if end == "passed to L1":
        return "an address of L2: record the same events in L1"
    if end == "resumed" and "marked with a reserved bit" in meanings:
        return "an MMIO entry that is stale or broken: record kvm_mmio, kvm_emulate_insn and kvmmmu"
    if end == "resumed" and "not mapped" in meanings:
        return (
            f"KVM tries again as long as the host takes pages away or changes memslots: record {UNMAP}; kernels before "
            "6.3 that lack the fix of August 2023 do so for ever after 2^31 times "
            "(<20230824010104.2714198-1-seanjc@google.com>)"
        )
    return None
