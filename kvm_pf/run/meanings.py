# SPDX-License-Identifier: GPL-2.0-only
"""What a code says: one number in one encoding, in words.

Bits that depend on other bits are read that way, and bits whose absence tells something are told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvm_pf.bits import (
    EPT,
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_MASK,
    EPT_VIOLATION_USER_EXEC,
    EVENT,
    EVENT_TYPE_MASK,
    EVENT_TYPE_SHIFT,
    EVENT_TYPES,
    EVENT_VECTOR_MASK,
    MEMORY_FAULT,
    PFERR,
    PFERR_FETCH_MASK,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_GUEST_RMP_MASK,
    PFERR_GUEST_SIZEM_MASK,
    PFERR_GUEST_VMPL_MASK,
    PFERR_IMPLICIT_ACCESS,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_SGX_MASK,
    PFERR_SS_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    U64_MASK,
    Bit,
    decode,
)
from kvm_pf.common.errors import InputError

APM_NPF = "AMD APM vol. 2, section 15.25.6 (nested versus guest page faults, fault ordering)"
SDM_EPT = "Intel SDM vol. 3, table of exit qualifications for EPT violations (29-7 in 2024)"
TDX_EPT = "Linux `arch/x86/kvm/vmx/tdx.c`, tdx_handle_ept_violation() (v6.16)"
TDX_REVISION = "v7_3"
"""The oldest revision that follows a TDX guest's faults."""

TDX_CLEARED = 0x1F80
"""The bits, 12:7, that the TDX module clears in each qualification that it hands to KVM: the linear address is hidden.

Source: intel/tdx-module `src/td_dispatcher/tdx_td_dispatcher.c`, tdx_ept_violation_exit_to_vmm().
"""

SDM_PF = "Intel SDM vol. 3, section 4.7 (page-fault exceptions)"


class Encoding(NamedTuple):
    """A kind of code: its table, what it is called, how many bits it has, and where its dependent bits were read."""

    table: tuple[Bit, ...]
    title: str
    bits: int
    source: str


ENCODINGS = {
    "npf": Encoding(PFERR, "#NPF error code (AMD, EXITINFO1)", 64, APM_NPF),
    "ept": Encoding(EPT, "EPT-violation exit qualification (Intel)", 64, SDM_EPT),
    "tdx": Encoding(EPT, "EPT-violation exit qualification of a TDX guest (Intel)", 64, TDX_EPT),
    "pf": Encoding(PFERR, "#PF error code, as the CPU pushes it (32 bits)", 32, SDM_PF),
    "pferr": Encoding(PFERR, "page-fault error code inside KVM, what kvm_mmu_page_fault() gets", 64, PFERR[0].source),
    "memfault": Encoding(MEMORY_FAULT, "flags of KVM_EXIT_MEMORY_FAULT", 64, MEMORY_FAULT[0].source),
    "vectoring": Encoding(EVENT, "IDT-vectoring information (AMD: EXITINTINFO)", 64, EVENT[0].source),
    "intr": Encoding(EVENT, "VM-exit interruption information", 32, EVENT[0].source),
}  # fmt: skip
"""The encodings, by the names that `--as` takes; of equally likely ones the first is chosen."""


class Part(NamedTuple):
    """A set bit as it is to be read in its code; `counts` is False if another bit makes it mean nothing."""

    bit: Bit
    means: str
    counts: bool = True


class Meaning(NamedTuple):
    """What a code says.

    `sentence` is for people.  `target` is "page tables" (a walk of the guest's), "final" (the access itself) or
    "" (not said); `page` says how the page is mapped: the same words for Intel and AMD.  `parts` are the set
    bits, `clear` the bits whose absence tells something, `notes` what else one should know.
    """

    sentence: str
    target: str
    page: str
    parts: tuple[Part, ...]
    clear: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def meaning(code: int, encoding: str) -> Meaning:
    """Say what `code` (u64) means in `encoding`, one of ENCODINGS.

    Raises InputError if there is no such encoding, or the code is too wide for it.

    >>> meaning(0x83, "ept").sentence
    "a walk of the guest's page tables (read and write), on a page that is not mapped"
    """
    if encoding not in ENCODINGS:
        raise InputError(f"encoding={encoding!r:.60}: it takes one of {', '.join(ENCODINGS)}")
    decode(code)
    bits = ENCODINGS[encoding].bits
    if code >> bits:
        raise InputError(f"{code:#x}: such a code has {bits} bits, 0 to {(1 << bits) - 1:#x}")
    return _MEANINGS[encoding](code)


def _parts(
    code: int, table: Sequence[Bit], instead: dict[int, str], undefined: dict[int, str]
) -> tuple[Part, ...]:
    return tuple(
        Part(row, undefined[row.bit], False)
        if row.bit in undefined
        else Part(row, instead.get(row.bit, row.means), row.bit in instead or row in table)
        for row in decode(code, table)
    )


def _words(*pairs: tuple[int, str]) -> list[str]:
    return [word for true, word in pairs if true]


def _an(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


WALK = "a walk of the guest's page tables"
NOT_MAPPED = "not mapped"
_NO_WAY = "no meaning in this encoding"


def _denied(wanted: Sequence[str]) -> str:
    return f"not mapped for {' or '.join(wanted)}"


def _ept(code: int) -> Meaning:
    """Source: Intel SDM vol. 3, table of exit qualifications for EPT violations."""
    valid = code & EPT_VIOLATION_GVA_IS_VALID != 0
    final = valid and code & EPT_VIOLATION_GVA_TRANSLATED != 0
    read, write, fetch = (
        code & mask for mask in (EPT_VIOLATION_ACC_READ, EPT_VIOLATION_ACC_WRITE, EPT_VIOLATION_ACC_INSTR)
    )
    access = " and ".join(_words((read, "read"), (write, "write"), (fetch, "instruction fetch")))
    access = access or "access of no kind"
    if code >> 13 & 1:
        access = f"shadow-stack {access}"
    if final:
        what = _an(access)
    else:
        what = f"{WALK} ({access})" if valid else f"{_an(access)} without a linear address"
    # The permissions stand three bits above the accesses that they allow.
    wanted = _words(
        (read and not code & EPT_VIOLATION_ACC_READ << 3, "reading"),
        (write and not code & EPT_VIOLATION_ACC_WRITE << 3, "writing"),
        (fetch and not code & EPT_VIOLATION_ACC_INSTR << 3, "execution"),
    )
    if not code & EPT_VIOLATION_RWX_MASK:
        page = NOT_MAPPED
    else:
        page = _denied(wanted) if wanted else "mapped for that"

    advanced = code & 7 << 9 if final else 0
    undefined = dict.fromkeys(range(17, 64), _NO_WAY)
    if not final:
        undefined |= dict.fromkeys((9, 10, 11), "undefined here: it counts only with bits 7 and 8 set")
    if not valid:
        undefined[8] = "reserved without bit 7"
    instead = {
        6: "with mode-based execute control: executable in user mode; without: undefined",
        9: "a user-mode linear address (if the CPU has advanced VM-exit information for EPT violations)",
        10: "the guest's page tables allow writing (with advanced VM-exit information)",
        11: "the guest's page tables forbid execution (with advanced VM-exit information)",
        12: "NMI unblocking due to IRET; undefined if an event was being delivered",
        14: "with supervisor shadow-stack control: a supervisor shadow-stack page; without: undefined",
    }
    clear, notes = [], []
    if page == NOT_MAPPED:
        clear.append("bits 3-5 clear: the EPT entries allow nothing, the page is not mapped")
    if not valid:
        clear.append(
            "bit 7 clear: no linear address (the CPU loads PDPTEs or writes a trace; TDX hides it always)"
        )
    elif not final:
        clear.append(f"bit 8 clear: {WALK}, not the access itself")
    if advanced:
        clear += _words(
            (not code >> 9 & 1, "bit 9 clear: a supervisor-mode linear address"),
            (not code >> 10 & 1, "bit 10 clear: the guest's page tables forbid writing"),
            (not code >> 11 & 1, "bit 11 clear: the guest's page tables allow execution"),
        )
    if valid and not final and read and write:
        notes.append(
            "read and write together: EPT's accessed and dirty flags are on, so that walks count as writes"
        )
    if final and read and write:
        notes.append("read and write together: a read-modify-write instruction")
    if page == "mapped for that":
        notes.append(
            "the entries allow the access: they were changed meanwhile, or another check refused (bits 13-15)"
        )
    if page == NOT_MAPPED and code & EPT_VIOLATION_USER_EXEC:
        notes.append("if mode-based execute control is on, bit 6 says: mapped, for user-mode execution only")
    target = "final" if final else "page tables" if valid else ""
    parts = _parts(code, EPT, instead, undefined)
    return Meaning(f"{what}, on a page that is {page}", target, page, parts, tuple(clear), tuple(notes))


def _tdx(code: int) -> Meaning:
    """A code of 0 is of a call: accepting a page that is not there ends in an EPT violation as well.

    Source: Linux `arch/x86/kvm/vmx/tdx.c`, tdx_handle_ept_violation() (v6.16); intel/tdx-module
    `src/td_dispatcher/vm_exits/tdg_mem_page_accept.c`, tdaccept_ept_violation_exit().
    """
    said = _ept(code & ~TDX_CLEARED)
    if code == 0:
        call = "a call of a TDX guest on a private page, to accept it or about its attributes, that is not mapped so"
        return said._replace(sentence=call, page="", clear=("bits 0-2 clear: no access, but a call",))
    if code == EPT_VIOLATION_ACC_WRITE:
        what = "an access of a TDX guest, to private memory (any access: KVM makes it a write) or a write to shared"
    else:
        what = said.sentence.partition(", on a page")[0].replace(" without a linear address", "")
        fetch = code & EPT_VIOLATION_ACC_INSTR
        what += f" by a TDX guest, {'from private memory' if fetch else 'of shared memory if KVM traced it'}"
    clear = [text for text in said.clear if not text.startswith("bit 7 clear")]
    if not code & EPT_VIOLATION_GVA_IS_VALID:
        clear.append("bit 7 clear: no linear address, TDX hides it")
    cleared = dict.fromkeys(range(7, 13), "the TDX module clears it: not from a TDX guest")
    parts = *said.parts, *_parts(code & TDX_CLEARED, EPT, {}, cleared)
    note = (
        "the address tells private from shared memory: shared memory has bit 47 set, with 5-level EPT bit 51"
    )
    return said._replace(
        sentence=f"{what}, on a page that is {said.page}",
        parts=tuple(sorted(parts, key=lambda part: part.bit.bit)),
        clear=tuple(clear),
        notes=(*said.notes, note),
    )


def _access(code: int) -> str:
    if code & PFERR_FETCH_MASK:
        access = "instruction fetch"
    else:
        access = "write" if code & PFERR_WRITE_MASK else "read"
    return f"shadow-stack {access}" if code & PFERR_SS_MASK else access


def _not_for(code: int) -> str:
    if code & PFERR_FETCH_MASK:
        return _denied(["execution"])
    return _denied(["writing"]) if code & PFERR_WRITE_MASK else "mapped, but not for that"


def _nested(code: int, inside: bool) -> Meaning:
    """Source: AMD APM vol. 2, section 15.25.6, and 15.36.10 for SNP."""
    walk = code & PFERR_GUEST_PAGE_MASK and not code & PFERR_GUEST_FINAL_MASK
    write = code & PFERR_WRITE_MASK
    more = _words(
        (walk, f"counts as a {'write' if write else 'read'}"),
        (code & PFERR_IMPLICIT_ACCESS, "by the emulator, for the CPU itself"),
        (code & PFERR_PRIVATE_ACCESS, "private memory"),
        (code & PFERR_GUEST_ENC_MASK and not code & PFERR_PRIVATE_ACCESS, "encrypted"),
    )
    what = WALK if walk else _an(_access(code))
    if not inside and not code >> 32 & 3 and write and not code & PFERR_FETCH_MASK:
        what = f"a write, or {WALK}"
    what += f" ({', '.join(more)})" if more else ""
    if code & PFERR_RSVD_MASK:
        page = "marked with a reserved bit, as KVM marks MMIO"
    else:
        page = _not_for(code) if code & PFERR_PRESENT_MASK else NOT_MAPPED
    reasons = _words(
        (code & PFERR_GUEST_RMP_MASK, "the RMP check failed"),
        (code & PFERR_GUEST_SIZEM_MASK, "page size and RMP differ"),
        (code & PFERR_GUEST_VMPL_MASK, "the VMPL does not allow it"),
    )
    sentence = f"{what}, on a page that is {page}"
    if code & PFERR_GUEST_RMP_MASK and code & PFERR_PRESENT_MASK and not code & PFERR_RSVD_MASK:
        sentence = f"{what}, refused"
    sentence += f": {', '.join(reasons)}" if reasons else ""
    if inside and code == PFERR_RSVD_MASK:
        sentence = "an EPT misconfiguration, which is how EPT shows MMIO: KVM hands in this bit alone"
    instead = {
        1: "counts as a write, as every walk of the guest's page tables does"
        if walk
        else "the access was a write",
        2: "nested accesses count as user accesses: this says nothing about the guest's mode",
        3: "a reserved bit is set in the nested page-table entry, which is how KVM marks MMIO",
        34: "the access was encrypted (C-bit): for an SNP guest, to private memory",
    }
    if inside:
        instead[2] = "user access; from EPT before 7.3: a read; from #NPF: nearly always set"
    undefined: dict[int, str] = {}
    if not inside:
        undefined = dict.fromkeys((5, 15), _NO_WAY)
        undefined |= dict.fromkeys(
            (48, 49), "KVM's own: added after the exit (SNP, from 6.11), or a collision"
        )
    clear = _words(
        (not code & (PFERR_PRESENT_MASK | PFERR_RSVD_MASK), "bit 0 clear: the page is not mapped"),
        (not walk and not code & (PFERR_WRITE_MASK | PFERR_FETCH_MASK), "bits 1 and 4 clear: a read"),
    )
    stage = code >> 32 & 3
    if stage == 0 and not inside:
        clear.append("bits 32 and 33 clear: it is not the whole code, #NPF sets one of them")
    notes = ["bits 32 and 33 together: no CPU is documented to set both"] if stage == 3 else []
    target = "page tables" if walk else "final" if code & PFERR_GUEST_FINAL_MASK else ""
    return Meaning(
        sentence, target, page, _parts(code, PFERR, instead, undefined), tuple(clear), tuple(notes)
    )


def _pf(code: int) -> Meaning:
    """Source: Intel SDM vol. 3, section 4.7."""
    mode = "user-mode" if code & PFERR_USER_MASK else "supervisor-mode"
    what = f"a {mode} {_access(code)}"
    if code & PFERR_RSVD_MASK:
        page = _OWN_RSVD
    elif not code & PFERR_PRESENT_MASK:
        page = NOT_MAPPED
    else:
        why = _words(
            (code & PFERR_PK_MASK, "a protection key forbids it"),
            (code & PFERR_SGX_MASK, "SGX forbids it"),
            (code & PFERR_GUEST_RMP_MASK, "the RMP forbids it"),
        )
        page = f"mapped, but {' and '.join(why)}" if why else "mapped, but not for that"
    instead = {
        2: "user-mode access",
        3: "a reserved bit is set in the page tables that were walked: the guest's own (under shadow paging KVM's, "
        "where it marks MMIO)",
    }
    undefined = {n: _NO_WAY for n in range(64) if n not in (0, 1, 2, 3, 4, 5, 6, 15, 31)}
    clear = _words(
        (not code & PFERR_PRESENT_MASK, "bit 0 clear: not mapped"),
        (not code & (PFERR_WRITE_MASK | PFERR_FETCH_MASK), "bits 1 and 4 clear: a read"),
        (not code & PFERR_USER_MASK, "bit 2 clear: supervisor mode"),
    )
    return Meaning(
        f"{what}, on a page that is {page}", "", page, _parts(code, PFERR, instead, undefined), tuple(clear)
    )


_OWN_RSVD = "mapped by an entry with a reserved bit set, in the guest's own page tables"
_KVMS_RSVD = "mapped by an entry with a reserved bit set, which under shadow paging is how KVM marks MMIO"


def under_shadow(said: Meaning) -> Meaning:
    """Turn what a #PF error code says of the guest's own page tables into what it says under shadow paging.

    There the CPU walks KVM's tables.  A reserved bit in the guest's own makes no entry there: KVM finds it in its walk
    and hands the guest a #PF.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), and `paging_tmpl.h`, FNAME(walk_addr_generic)()
    (v6.12).
    """
    return said._replace(
        sentence=said.sentence.replace(_OWN_RSVD, _KVMS_RSVD), page=said.page.replace(_OWN_RSVD, _KVMS_RSVD)
    )


def _memory_fault(code: int) -> Meaning:
    """Source: Linux `Documentation/virt/kvm/api.rst`, KVM_EXIT_MEMORY_FAULT (v6.8)."""
    kind = "private" if code & MEMORY_FAULT[0].mask else "shared"
    clear = () if kind == "private" else ("bit 3 clear: the access was to shared memory",)
    todo = (
        f"what user space does: KVM_SET_MEMORY_ATTRIBUTES makes the range (gpa and size beside the flags) {kind}, then "
        "KVM_RUN again; KVM_RUN returns -1 with this exit, EFAULT or EHWPOISON (a poisoned page: converting helps not)"
    )
    return Meaning(
        f"an access to {kind} memory that KVM could not settle: user space is asked, as a rule to make the page {kind}",
        "", "", _parts(code, MEMORY_FAULT, {}, {}), clear, (todo,),
    )  # fmt: skip


VECTORS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP", 28: "#HV",
    29: "#VC", 30: "#SX",
}  # fmt: skip
"""Names of exceptions.  Source: Intel SDM vol. 3, table of exceptions and interrupts; AMD APM vol. 2, section 8.2."""

EVENT_VALID = 1 << 31
EVENT_EXCEPTIONS = (3, 5, 6)


def event(code: int) -> tuple[int, int, str]:
    """Split an event into type, vector and a name for both."""
    kind, vector = (code & EVENT_TYPE_MASK) >> EVENT_TYPE_SHIFT, code & EVENT_VECTOR_MASK
    what = EVENT_TYPES[kind] or "event of a reserved type"
    named = VECTORS.get(vector, "") if kind in (*EVENT_EXCEPTIONS, 2) else ""
    if kind == 2 and vector == 2:
        return kind, vector, "an NMI"
    return kind, vector, f"{named} ({what}, vector {vector})" if named else f"{_an(what)} (vector {vector})"


def _event_meaning(code: int, delivered: bool) -> Meaning:
    """Source: Intel SDM vol. 3, information for VM exits due to vectored events and during event delivery."""
    _, _, what = event(code)
    if not code & EVENT_VALID:
        sentence = "no event was being delivered" if delivered else "no event caused the exit"
    else:
        sentence = (
            f"{what} was being delivered when the exit came" if delivered else f"{what} caused the exit"
        )
    error = code >> 32
    if delivered and code >> 11 & 1 and error:
        sentence += f", with error code {error:#x}"
    skip = EVENT_VECTOR_MASK | EVENT_TYPE_MASK | (U64_MASK & ~(EVENT_VALID * 2 - 1) if delivered else 0)
    undefined = dict.fromkeys(range(13, 31), _NO_WAY)
    if delivered:
        undefined[12] = "undefined in IDT-vectoring information"
    clear = () if code & EVENT_VALID else ("bit 31 clear: the other bits say nothing",)
    return Meaning(sentence, "", "", _parts(code & ~skip, EVENT, {}, undefined), clear)


_MEANINGS: dict[str, Callable[[int], Meaning]] = {
    "npf": lambda code: _nested(code, False),
    "ept": _ept,
    "tdx": _tdx,
    "pf": _pf,
    "pferr": lambda code: _nested(code, True),
    "memfault": _memory_fault,
    "vectoring": lambda code: _event_meaning(code, True),
    "intr": lambda code: _event_meaning(code, False),
}
