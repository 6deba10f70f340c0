# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is stuck on: a storm in words, as far as its codes and endings tell, and what to look at next."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from kvm_pf.bits import PFERR_FETCH_MASK, PFERR_GUEST_ENC_MASK
from kvm_pf.common.errnos import ERRNO_NAMES
from kvm_pf.run.refusals import ERROR_LOOKS, ERRORS, WARNING_LOOKS
from kvm_pf.trace.events import MAPPINGS, SNP, UNMAP, missing
from kvm_pf.trace.record import STALE, WAITS
from kvm_pf.trace.storms import Storm

_MEMORY_FAULT, _EFAULT = "KVM_EXIT_MEMORY_FAULT", "to user space: error 14"


class Cause(NamedTuple):
    """Why a fault of a storm comes again, as far as it is told, what to look at next, and which events tell more.

    What to look at are lines, none if it is empty.
    """

    why: str
    look: str = ""
    record: tuple[str, ...] = ()


_PLAIN = {
    "emulated": Cause(
        "each time the instruction is emulated, and the guest executes it again",
        "why is it not mapped for that? A page table of the guest's that KVM shadows (nested, or no EPT or NPT), or a "
        "page whose writes are tracked (GVT-g)",
        (MAPPINGS,),
    ),
    "not shown": Cause("how each ends was not recorded"),
    "fast MMIO": Cause(
        "each time a device in the host's kernel takes the write: the guest drives it in a loop",
        "which queue of which virtio device is notified there, and by which driver of the guest",
    ),
    "passed to L1": Cause(
        "each time it is handed to L1, whose own tables are to blame or which resolves nothing",
        "an address of L2: record the same events in L1",
    ),
    "#PF injected": Cause(
        "each time the guest gets the #PF, and its handler resolves nothing",
        "the guest's own page-table entries",
        ("kvmmmu:kvm_mmu_pagetable_walk", "kvmmmu:kvm_mmu_paging_element"),
    ),
    "to user space: restart": Cause(
        "each time a signal takes the vCPU out of KVM_RUN before the fault is settled",
        "which signal (strace -f -e signal=all -p PID): SIGBUS says that the host's page is poisoned",
    ),
    STALE: Cause(
        "each time KVM finds its MMIO entry older than the memslots (check_mmio_spte), and the guest is resumed",
        "who changes memslots all the time (KVM_SET_USER_MEMORY_REGION: strace the VMM)",
    ),
    WAITS: Cause(
        "each time KVM has the host bring the page in and lets the guest do something else (asynchronous #PF)",
        "why the host's page does not come: swap, userfaultfd (post-copy migration), a file",
        ("kvm:kvm_async_pf_completed",),
    ),
}  # fmt: skip
"""The endings of which nothing else has to be known.

Sources: what the path does, by its functions; a device in the host's kernel on the fast-MMIO bus: Linux
`Documentation/virt/kvm/api.rst`, KVM_IOEVENTFD; Linux `arch/x86/kvm/mmu/mmu.c`, check_mmio_spte(),
__kvm_mmu_faultin_pfn() (v6.12).
"""


def hexadecimal(value: Any) -> str:
    """Write a number of a table in hexadecimal; a gap as "?"."""
    import pandas as pd

    return "?" if pd.isna(value) else f"{int(value):#x}"


def _at(address: Any) -> str:
    import pandas as pd

    return " (its address is not shown)" if pd.isna(address) else f", at {int(address):#x}"


def stuck_on(storm: Storm) -> str:
    """Say in words what a storm's faults are about."""
    whats = [f"{each.meaning}{_at(each.gpa)}" for each in storm.turn]
    return "; then ".join(dict.fromkeys(whats))


def verdict(storm: Storm, rival: Storm | None = None, seen: Collection[str] | None = None) -> str:
    """Say in words why a storm's faults come again, as far as the outcomes tell.

    `rival` is the storm of another vCPU that asks for the same page otherwise, if there is one; `seen` holds the names
    of the events that were recorded, if they are known.
    """
    if rival is not None:
        return f"vCPU {rival.vcpu} asks for the same page as {_kinds(rival)} meanwhile: they take it from one another"
    whys = [cause(storm, n, seen).why for n in range(len(storm.turn))]
    if len(set(whys)) > 1:
        return "; then ".join(dict.fromkeys(whys))
    most = sum(max(counts.values(), default=0) for counts in storm.ends)
    return whys[0] + (f" ({most} of {storm.faults})" if most < storm.faults else "")


def _kinds(storm: Storm) -> str:
    kinds = dict.fromkeys("private" if ask.private else "shared" for ask in storm.asked)
    return f"{' and '.join(kinds)} memory"


def rivals(storms: Sequence[Storm]) -> list[Storm | None]:
    """Find for each storm one of another vCPU, at the same time in the same trace, that asks for a page otherwise."""
    asking: dict[tuple[int, bool], list[Storm]] = defaultdict(list)
    for storm in storms:
        for ask in storm.asked:
            if ask.private is not None:
                asking[ask.gfn, ask.private].append(storm)
    found: list[Storm | None] = []
    for storm in storms:
        others = (
            other
            for ask in storm.asked
            if ask.private is not None
            for other in asking.get((ask.gfn, not ask.private), ())
            if str(other.vcpu) not in (str(storm.vcpu), "<NA>", "None")
            and other.first_line <= storm.last_line
            and storm.first_line <= other.last_line
        )
        found.append(next(others, None))
    return found


def cause(storm: Storm, n: int, seen: Collection[str] | None = None) -> Cause:
    """Say why the n-th fault of a storm's turn comes again, by how most of them ended, and what to look at next.

    Sources: that SNP's faults that the RMP refuses are answered by splitting its entry and zapping: Linux
    `arch/x86/kvm/svm/sev.c`, sev_handle_rmp_fault() (v6.11); that private memory cannot be emulated MMIO:
    `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault() (v6.10).
    """
    counts, meaning = storm.ends[n], storm.turn[n].meaning
    end = counts.most_common(1)[0][0] if counts else "not shown"
    if _MEMORY_FAULT in end:
        return _converted(storm)
    if end == _EFAULT:
        return _efault(storm, meaning)
    if found := re.match(r"to user space: error (\d+)", end):
        number = int(found[1])
        said = ERRORS.get(number)
        name = ERRNO_NAMES.get(number, f"error {number}")
        why = f"each time KVM_RUN fails ({name}{f': {said}' if said else ''}) and user space runs the vCPU again"
        return Cause(why, ERROR_LOOKS.get(number, ""))
    if end.startswith("emulation failed"):
        return Cause(f"KVM cannot emulate the instruction ({end})", unemulated(storm.turn[n].raw_code))
    if end.startswith("MMIO ") or end == "to user space: KVM_EXIT_MMIO":
        return _mmio(meaning)
    if "the RMP check failed" in meaning and end in ("resumed", "mapped", "not shown"):
        return Cause(
            "each time the RMP refuses the page, which is not the guest's, or of another size there; KVM splits the "
            "RMP's entry if it covers 2 MiB, drops what is mapped there, and the guest tries again",
            "read dmesg (SEV:, SEV-SNP:), kvm_rmp_fault's psmash_ret, and kvm_vmgexit_enter: page-state changes",
            SNP,
        )
    if end == "mapped":
        return _mapped(meaning, storm.zapped)
    if end == "resumed":
        told = _resumed(meaning, seen)
        return told._replace(record=told.record + _snp(storm))
    return _PLAIN.get(end, Cause(f"each ends so: {end}"))


def _snp(storm: Storm) -> tuple[str, ...]:
    """Name the events that tell more of an SNP guest, if the storm's can be one: its private accesses are encrypted."""
    return (
        SNP if any(_is_encrypted(each.raw_code) and each.private is not False for each in storm.turn) else ()
    )


def _is_encrypted(code: Any) -> bool:
    """Say whether a code (u64, or a gap) has AMD's bit 34, which no qualification of EPT's has."""
    import pandas as pd

    return not pd.isna(code) and int(code) & PFERR_GUEST_ENC_MASK != 0


def unemulated(code: Any) -> str:
    """Say what to look at where KVM could not emulate an instruction; `code` is the fault's, or a gap.

    Source: Linux `arch/x86/kvm/x86.c`, prepare_emulation_failure_exit(), and `include/uapi/linux/kvm.h`,
    emulation_failure of struct kvm_run (v5.15).
    """
    import pandas as pd

    fetch = not pd.isna(code) and int(code) >> 32 and int(code) & PFERR_FETCH_MASK
    return (
        "is there a memslot at that address (QEMU: info mtree)? "
        + ("It was a fetch, and instructions are never fetched from MMIO. " if fetch else "")
        + "vcpu->run->emulation_failure has the instruction's bytes (insn_bytes)"
    )


_NO_FILE = "its memslot has no guest_memfd"
_WITHOUT = (
    f"{_NO_FILE}, or (another error than EFAULT) that gives no page: poisoned, no memory left, or "
    "SNP's RMP refuses it"
)
GUEST_MEMFD = (
    "does the memslot there have a guest_memfd (strace the VMM: KVM_SET_USER_MEMORY_REGION2, KVM_MEM_GUEST_MEMFD)? "
    "It makes a page that is not there; where it cannot, KVM_RUN's error is not EFAULT, and dmesg may say why (SEV:)"
)
"""What to look at where private memory gives no page.  A page that is not there yet is made; it is no cause.

Source: Linux `virt/kvm/guest_memfd.c`, kvm_gmem_get_pfn(), kvm_gmem_get_folio() (v6.12): without a file -EFAULT; a
poisoned page -EHWPOISON; no memory -ENOMEM; and what kvm_arch_gmem_prepare() (`arch/x86/kvm/svm/sev.c`,
sev_gmem_prepare()) says.
"""
_ORDINARY = "the VMM's memslot there, and its mapping (/proc/PID/smaps): is the page there, and writable?"
_INSIDE = "inside the guest (the host cannot read it there): the page-table entries for the page, C-bit or shared bit"


def _efault(storm: Storm, meaning: str) -> Cause:
    if any(ask.private for ask in storm.asked):
        if "marked with a reserved bit" in meaning:
            return Cause(
                "KVM_RUN fails with EFAULT each time: private and reserved at once, which KVM refuses. No guest can "
                "bring that about, for an SNP guest's reserved faults become #VC in it: a bug of the CPU's or of KVM's",
                WARNING_LOOKS["kvm_mmu_page_fault"],
            )
        told = _converted(storm)
        why = told.why.replace(_WITHOUT, _NO_FILE)
        return told._replace(why=f"{why}; KVM_RUN ends with a memory fault (EFAULT)")
    if "shared memory by a TDX guest" in meaning:
        return Cause(
            "KVM_RUN fails with EFAULT each time: as a rule KVM_EXIT_MEMORY_FAULT with flags 0, for the page is "
            "private by its attribute and user space does not make it shared; else user space has no page there",
            f"the VMM's log of conversions\n{_INSIDE}\n{_ORDINARY}",
        )
    if any(_is_encrypted(each.raw_code) and each.private is None for each in storm.turn):
        return Cause(
            "KVM_RUN fails with EFAULT each time, at an encrypted access. Of an SNP guest that is one to private "
            f"memory: user space does not convert the page, or it is private and {_NO_FILE}. Of SEV and SEV-ES it "
            "never is: user space has no page there that can be used so",
            f"is it an SNP guest (QEMU: -object sev-snp-guest)? {GUEST_MEMFD}\n{_ORDINARY}",
            _snp(storm),
        )
    if any(ask.declared for ask in storm.asked):
        return Cause(
            "KVM_RUN fails with EFAULT each time, and the page was declared private: its memslot has no guest_memfd, "
            "the conversion was not made, or the access would have to be emulated",
            f"the VMM's log of conversions\n{GUEST_MEMFD}",
        )
    why = (
        "each time KVM_RUN fails with EFAULT and user space runs the vCPU again: it has no page there that can be "
        "used so"
    )
    if any(_is_encrypted(each.raw_code) for each in storm.turn):
        return Cause(f"{why} (SEV's and SEV-ES's encrypted memory is no private memory)", _ORDINARY)
    return Cause(
        f"{why}, or (private memory) does not know KVM_EXIT_MEMORY_FAULT",
        f"{_ORDINARY} Of a VM with private memory: trace.dat (trace-cmd record) shows KVM_EXIT_MEMORY_FAULT, which "
        "text hides",
    )


def _mmio(meaning: str) -> Cause:
    look = "which device of the VMM is there, or which memslot should be (QEMU: info mtree)"
    if "not mapped for writing" in meaning:
        return Cause(
            "each time the write is emulated as MMIO: the page can be read and not written, as of a read-only memslot "
            "(ROM, flash)",
            look,
        )
    return Cause(
        "each time the access is emulated as MMIO: no memslot is there (for a write, or a read-only one), and the "
        "guest polls a device or takes the address for memory",
        look,
    )


_TDX_RETRIES = (
    "KVM tries again as long as the TDX module's tables are in use, the host takes pages away, or the guest accepts "
    "the page in another size than it has: read dmesg (SEAMCALL)"
)


BEFORE_6_3 = (
    "kernels before 6.3 that lack the fix of August 2023 try again for ever after 2^31 times "
    "(<20230824010104.2714198-1-seanjc@google.com>)"
)
"""What a newer kernel need not be told."""


def _resumed(meaning: str, seen: Collection[str] | None) -> Cause:
    why = "each time the guest is resumed"
    if seen is not None:
        is_told = not missing([MAPPINGS], seen)
        why += ", and nothing is mapped" if is_told else "; mappings were not recorded"
    if "TDX guest" in meaning:
        return Cause(why, _TDX_RETRIES, (UNMAP, MAPPINGS))
    if "marked with a reserved bit" in meaning or "calls misconfigured" in meaning:
        record = "kvm:kvm_mmio", "kvm:kvm_emulate_insn", MAPPINGS
        return Cause(why, "an MMIO entry that is stale or broken", record)
    if "is mapped for that" in meaning:
        return Cause(
            "each time the guest is resumed: the entry allows the access by now, and the CPU refused it all the same",
            "who changes the entry in between, or does not flush the TLB",
            (MAPPINGS, UNMAP),
        )
    if "not mapped" in meaning:
        return Cause(
            why,
            "KVM tries again as long as the host takes pages away or changes memslots or attributes (pages of "
            f"guest_memfd and attributes: kvm_unmap_hva_range tells neither)\n{BEFORE_6_3}",
            (UNMAP, MAPPINGS),
        )
    return Cause(why)


def _mapped(meaning: str, zapped: bool) -> Cause:
    taken = (
        "who takes the mapping away: on the host compaction:*, migrate:*, ksm and NUMA balancing "
        f"(perf record -g -e {UNMAP}; it tells nothing of guest_memfd and of attributes)"
    )
    record = UNMAP, MAPPINGS
    if "not mapped for writing" in meaning:
        return Cause(
            "each time it is made writable, and is protected again when the guest comes back, as by dirty logging, "
            "KSM or a copy-on-write page of the host",
            "does a migration or another dirty log of the VM run (QEMU: info migrate), or KSM on the host?",
        )
    if "not mapped for execution" in meaning:
        return Cause(
            "each time it is made executable, and is so no more when the guest comes back, as when KVM puts a large "
            "page without execution in its place (nx_huge_pages)",
            "/sys/module/kvm/parameters/nx_huge_pages*, and kvm's statistic nx_lpage_splits",
        )
    if zapped:
        return Cause("each time it is mapped, and entries are taken away again meanwhile", taken, record)
    return Cause(
        "each time it is mapped, and the mapping is gone or does not suffice when the guest comes back",
        _TDX_RETRIES if "TDX guest" in meaning else taken,
        record,
    )


def _converted(storm: Storm) -> Cause:
    """Say what becomes of memory faults: what they ask for, beside what the page was declared.

    A memory fault asks for what the page is not, or for private memory that has no page; so if one page's ask for both
    in turn, it is converted in between.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn() (v6.8), and `mmu_internal.h`, kvm_mmu_do_page_fault()
    (v6.10: private memory is not emulated).
    """
    asked, record = storm.asked, _snp(storm)
    known = Counter({ask: n for ask, n in asked.items() if None not in (ask.private, ask.declared)})
    same = Counter({ask: n for ask, n in known.items() if ask.private == ask.declared})
    pages: dict[int, set[bool | None]] = {}
    for ask in asked:
        pages.setdefault(ask.gfn, set()).add(ask.private)
    is_told = bool(known) or storm.conversions > 0
    look = _INSIDE if is_told else f"the VMM's log of conversions\n{_INSIDE}"
    if any({True, False} <= kinds for kinds in pages.values()) and 2 * same.total() <= known.total():
        return Cause(
            "user space converts the page each time, to private and to shared in turn, and the guest then uses it the "
            "other way, as through two mappings of it, one encrypted and one not",
            look,
            record,
        )
    if same and 2 * same.total() > known.total():
        private = next(iter(same)).private
        return Cause(
            f"the page is {'private' if private else 'shared'} already, so that converting it does not help: "
            + _WITHOUT
            + ("; or the access would have to be emulated, as private memory cannot be" if private else ""),
            f"{GUEST_MEMFD}\ndmesg: does it tell of an emulation request on private memory?"
            if private
            else GUEST_MEMFD,
            record,
        )
    if storm.conversions > 1:
        return Cause(
            "user space converts the page each time, and it is converted back before the guest comes again",
            look,
            record,
        )
    if known:
        return Cause(
            "user space does not convert the page, though told each time of a wrong private or shared access",
            look,
            record,
        )
    third = any(ask.private for ask in asked)
    return Cause(
        "no conversion of the page is in the trace: user space makes none (or of another range), or something undoes it"
        + (f", or the page is private already, and {_WITHOUT}" if third else ""),
        f"{look}\n{GUEST_MEMFD}" if third else look,
        record,
    )


def look_next(
    storms: Iterable[Storm], seen: Collection[str], spare: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Say what to look at to find the causes of storms, a line each, with the addresses that it is for.

    `seen` holds the names of the events that are in the trace already; the second list has those that would tell more.
    `spare` holds what need not be said of this kernel.
    """
    import pandas as pd

    found: dict[str, list[str]] = {}
    wanted: dict[str, None] = {}
    for storm in storms:
        for n, each in enumerate(storm.turn):
            said = cause(storm, n, seen)
            lacking = missing(said.record, seen)
            wanted |= dict.fromkeys(lacking)
            present = [event for event in dict.fromkeys(said.record) if event not in lacking]
            parts = [part for part in said.look.split("\n") if part and part not in spare]
            parts += [f"record {' and '.join(lacking)}"] if lacking else []
            parts += [f"see {' and '.join(present)} in the trace"] if present else []
            for part in parts:
                places = found.setdefault(part, [])
                if not pd.isna(each.gpa):
                    places.append(hexadecimal(each.gpa))
    lines: list[str] = []
    before = ""
    for part, places in found.items():
        where = ", ".join(dict.fromkeys(places))
        lines.append(f"{'there, too' if where == before else where}: {part}" if where else part)
        before = where
    return lines, list(wanted)
