# SPDX-License-Identifier: GPL-2.0-only
"""Claims about the patch: each a sentence, a check, and the revisions for which it should hold or fail.

A check is a function of a case and a revision that says whether the claim is true there.  `kvm_pf.proof.ask` gives
it solver terms, so that it speaks of every state at once: all 64-bit codes and addresses, all attributes,
generations and page-table entries, all answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, get_type_hints

from kvm_pf.bits import (
    PFERR,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_RMP_MASK,
    PFERR_GUEST_SIZEM_MASK,
    PFERR_GUEST_VMPL_MASK,
    PFERR_IMPLICIT_ACCESS,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_SYNTHETIC_MASK,
    describe,
    encode,
)
from kvm_pf.entry import TO_MMIO
from kvm_pf.exits import KIND_EPT, KIND_NPF, KIND_PF, PF_LOWER32_MASK, SEV_SNP
from kvm_pf.faultin import KVM_MEMSLOT_INVALID, KVM_PFN_NOSLOT, KVM_USER_MEM_SLOTS, Memory
from kvm_pf.proof.case import WAYS, Case, common_outputs, default, fingerprint, is_one_of
from kvm_pf.proof.terms import (
    Summary,
    all_of,
    all_paths,
    any_value,
    complete,
    implies,
    is_true,
    no,
    one_of,
)
from kvm_pf.revisions import REVISIONS, Revision, having
from kvm_pf.run.inputs import ANSWERS, U64_MAX, answers, limits, words
from kvm_pf.run.tables import Input
from kvm_pf.state import (
    EFAULT,
    GFN_MASK,
    KVM_EXIT_MEMORY_FAULT,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SEV_ES_VM,
    KVM_X86_SEV_VM,
    KVM_X86_SNP_VM,
    KVM_X86_SW_PROTECTED_VM,
    KVM_X86_TDX_VM,
    RET_PF_CONTINUE,
    RET_PF_RETRY,
)

Check = Callable[[Case, Revision], Any]

PROVED, EXHAUSTED, TESTED, STATED = "proved", "exhausted", "tested", "stated"
"""The strengths: for all states by a solver; all of so many run; so many run; only read in a source."""

HOLDS, EMPTY, FAILS, UNKNOWN = "holds", "empty", "fails", "unknown"
"""The answers.  Empty: it holds, but because there is no state of the kind that it speaks of."""


class Claim(NamedTuple):
    """Something that is said about the path.

    `lines` are the ids of the patch's lines that it covers, `holds` and `fails` the revisions that are expected
    to keep and to break it, `empty` those in which there is nothing that it could be about; nothing is expected of
    others.  `check` says whether it is true: of a case (strength `proved`); of a revision, with how many were run
    (`exhausted`, `tested`); a `stated` claim has none.
    """

    name: str
    statement: str
    lines: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    check: Check | Callable[[Revision], tuple[bool, int]] | None = None
    strength: str = PROVED
    source: str = ""

    def expected(self, revision: str) -> str | None:
        """What the answer for a revision should be: holds, empty or fails; None if nobody said."""
        named = {HOLDS: self.holds, EMPTY: self.empty, FAILS: self.fails}
        return next((answer for answer, revisions in named.items() if revision in revisions), None)


CLAIMS: dict[str, Claim] = {}
"""All claims by name."""


def claim(
    name: str,
    statement: str,
    lines: str = "",
    holds: str = "",
    fails: str = "",
    empty: str = "",
    strength: str = PROVED,
    source: str = "",
) -> Callable[[Any], Any]:
    """Enter a function into CLAIMS as the check of a claim; lists are words parted by blanks.

    A check of a case says "if … then …" with `Case.given`, so that a premise that never comes true is noticed.
    """

    def enter(check: Any) -> Any:
        words = [tuple(text.split()) for text in (lines, holds, fails, empty)]
        CLAIMS[name] = Claim(name, statement, words[0], words[1], words[2], words[3], check, strength, source)
        return check

    return enter


# --- revisions by what they do ---

ALL = having()
STRIPS, CALLERS_STRIP, LEAVES_49 = having("strips"), having("callers-strip"), having("leaves-49")
LOOKS_UP, BORROWS, NEVER_PRIVATE = having("looks-up"), having("borrows"), having("never-private")
CUT, NO_ATTRIBUTES = having("cut"), having("no-attributes")
MARKS = having("strips", but="never-private")  # bit 49 is set, and for software-protected VMs alone
REFUSES_RESERVED, COMPARES_FIRST = having("refuses-reserved"), having("compares-first")
STOPS_READY = having("stops-ready")
COMPARES_FAST, WRITE_PROTECTED = having("compares-fast"), having("write-protected")


def _has(code: Any, mask: int) -> Any:
    return code & mask != 0


def _private_page(c: Case) -> Any:
    return c.cfg_private_mem & _has(c.attrs, KVM_MEMORY_ATTRIBUTE_PRIVATE)


def _is_private(c: Case, r: str | Revision) -> Any:
    """Whether the fault reaches the handler, and as a private one."""
    handled = c.fault(r).handled
    return handled.called & handled.fault.is_private


# --- the bits from outside ---


@claim(
    "outside-bits-never-survive",
    "Bits 48 and 49 that a caller hands in never survive the sanitiser.",
    "h1+11 h2+04 h2+05 h2-06 h2-07",
    STRIPS,
    f"{CALLERS_STRIP} {LEAVES_49}",
)
def _(c: Case, r: Revision) -> Any:
    return no(_has(c.step("sanitize", r)(c.error_code)[0], PFERR_SYNTHETIC_MASK))


@claim(
    "sanitiser-is-a-mask",
    "What leaves the sanitiser is the code without bits 48 and 49, whether it warned or not.",
    "h1+11 h2+01 h2+02 h2+03 h2+04 h2+05",
    STRIPS,
    f"{CALLERS_STRIP} {LEAVES_49}",
)
def _(c: Case, r: Revision) -> Any:
    return c.step("sanitize", r)(c.error_code)[0] == c.error_code & ~PFERR_SYNTHETIC_MASK


@claim(
    "sanitiser-warns-of-what-it-drops",
    "The sanitiser warns if and only if it changes the code; given its own result, it does neither.",
    "h2-03 h2-04 h2-05 h2-06 h2-07 h2+01 h2+02 h2+03 h2+04 h2+05",
    ALL,
)
def _(c: Case, r: Revision) -> Any:
    sanitize = c.step("sanitize", r)
    code, warns = sanitize(c.error_code)
    again, warns_again = sanitize(code)
    return ((code != c.error_code) == (warns != 0)) & (again == code) & (warns_again == 0)


@claim(
    "other-bits-pass",
    "Every other bit of the error code reaches the handler as the caller gave it.",
    "h2+05",
    having(but="cut borrows"),
    f"{CUT} {BORROWS}",
)
def _(c: Case, r: Revision) -> Any:
    handled, kept = c.fault(r).handled, ~PFERR_SYNTHETIC_MASK
    return c.given(handled.called, handled.fault.error_code & kept == c.error_code & kept)


@claim(
    "cpu-cannot-forge",
    "Behind the exit's handler and the sanitiser, a bit 48 or 49 is KVM's own, never one that a CPU reported.",
    "h2+04 h2+05",
    f"{STRIPS} {CALLERS_STRIP}",
    LEAVES_49,
)
def _(c: Case, r: Revision) -> Any:
    mmu = c.exit(r).mmu
    code = c.step("sanitize", r)(mmu.error_code)[0]
    snp = (c.kind == KIND_NPF) & (c.snp_guest | (c.sev_kind == SEV_SNP)) & _has(c.info, PFERR_GUEST_ENC_MASK)
    tdx = c.step("vt_is_tdx_private_gpa", r)(c.direct_bits, c.addr) & (c.kind != KIND_NPF)
    forged = _has(code, PFERR_IMPLICIT_ACCESS) | (_has(code, PFERR_PRIVATE_ACCESS) & no(snp | tdx))
    return c.given(mmu.called, no(forged))


@claim(
    "ept-codes-are-clean",
    "The error code of an EPT violation has none of bits 3, 31, 34 to 36, 48 and 49.",
    holds=having(but="tdx"),
    fails=having("tdx"),
)
def _(c: Case, r: Revision) -> Any:
    never = PFERR_RSVD_MASK | PFERR_GUEST_RMP_MASK | PFERR_GUEST_ENC_MASK | PFERR_GUEST_SIZEM_MASK
    never |= PFERR_GUEST_VMPL_MASK | PFERR_SYNTHETIC_MASK
    mmu = c.exit(r).mmu
    return c.given((c.kind == KIND_EPT) & mmu.called, no(_has(mmu.error_code, never)))


@claim(
    "pf-codes-have-32-bits",
    "A legacy #PF hands on none of bits 32 to 63, and so neither of KVM's own.",
    holds=having("pf-32"),
    fails=having(but="pf-32"),
    source="mail <20240228024147.41573-7-seanjc@google.com>, 2024-02-28",
)
def _(c: Case, r: Revision) -> Any:
    mmu = c.exit(r).mmu
    return c.given((c.kind == KIND_PF) & mmu.called, no(_has(mmu.error_code, U64_MAX ^ PF_LOWER32_MASK)))


@claim(
    "callers-may-say-private",
    "A caller's bit 49 makes the fault private, so that TDX and SNP can say so.",
    "h2+04 h2+05",
    CALLERS_STRIP,
    f"{STRIPS} {LEAVES_49}",
    source="mail <ZeCf-sJIyR7vuMtD@google.com>, 2024-02-29",
)
def _(c: Case, r: Revision) -> Any:
    handled = c.fault(r).handled
    return c.given(handled.called & _has(c.error_code, PFERR_PRIVATE_ACCESS), handled.fault.is_private)


@claim(
    "no-root-no-look-up",
    "An invalid root ends the fault before any look-up: it is sent back, and nothing is counted or called.",
    "h2+14",
    ALL,
)
def _(c: Case, r: Revision) -> Any:
    o = c.fault(r)
    untouched = (o.lookups.count == 0) & no(o.mmio.called) & no(o.handled.called) & no(o.emulation.called)
    return c.given(no(c.root_valid), untouched & (o.ret == RET_PF_RETRY) & (o.stats.taken == 0))


# --- whose memory it is ---


@claim(
    "private-means-sw-protected",
    "A private fault is a software-protected VM's.",
    "h1+10 h2+08 h2+14 h2+16 h2+18 h3-01 h3+01",
    MARKS,
    f"{LOOKS_UP} {CALLERS_STRIP} {BORROWS}",
    empty=NEVER_PRIVATE,
)
def _(c: Case, r: Revision) -> Any:
    return c.given(_is_private(c, r), c.vm_type == KVM_X86_SW_PROTECTED_VM)


@claim(
    "private-means-declared",
    "The page that was looked up for a private fault is declared private.",
    "h2+09 h2+17 h2+18 h3-01 h3+01",
    f"{LOOKS_UP} {MARKS}",
    f"{CALLERS_STRIP} {BORROWS}",
    empty=NEVER_PRIVATE,
)
def _(c: Case, r: Revision) -> Any:
    return c.given(_is_private(c, r), _private_page(c))


@claim(
    "reserved-never-private",
    "A reserved fault that reaches the handler is never private.",
    "h2+07 h2+15 h3-01 h3+01",
    f"{STRIPS} {REFUSES_RESERVED} {NO_ATTRIBUTES}",
    f"{LOOKS_UP} posted_series merged_patch {BORROWS}",
)
def _(c: Case, r: Revision) -> Any:
    handled = c.fault(r).handled
    return c.given(handled.called & _has(c.error_code, PFERR_RSVD_MASK), no(handled.fault.is_private))


def _declared(c: Case) -> Any:
    """The posted patch's four tests, said once more: option, not reserved, type, attribute."""
    ordinary = no(_has(c.error_code, PFERR_RSVD_MASK))
    return c.cfg_sw_protected & ordinary & (c.vm_type == KVM_X86_SW_PROTECTED_VM) & _private_page(c)


@claim(
    "declared-is-private",
    "An ordinary fault of a software-protected VM on a page that it declared private is private.",
    "h1+10 h2+14 h2+16 h2+17 h2+18 h3+01",
    having(but="never-private"),
    NEVER_PRIVATE,
)
def _(c: Case, r: Revision) -> Any:
    handled = c.fault(r).handled
    return c.given(handled.called & _declared(c), handled.fault.is_private)


@claim(
    "private-exactly-then",
    "A fault through kvm_mmu_page_fault() is private exactly if CONFIG_KVM_SW_PROTECTED_VM is on, it is not reserved, "
    "the VM is software-protected, and the page that is looked up is declared private.",
    "h2+14 h2+15 h2+16 h2+17 h2+18 h3-01 h3+01",
    MARKS,
    f"{LOOKS_UP} {NEVER_PRIVATE} {CALLERS_STRIP} {BORROWS}",
)
def _(c: Case, r: Revision) -> Any:
    return c.given(c.fault(r).handled.called, c.fault(r).handled.fault.is_private == _declared(c))


@claim(
    "code-says-private",
    "A fault is private exactly if its error code has bit 49: one source of truth for every reader.",
    "h1+07 h1+08 h1+10 h2+18 h3-01 h3+01",
    f"{STRIPS} {CALLERS_STRIP} {NO_ATTRIBUTES}",
    f"{LOOKS_UP} {BORROWS}",
)
def _(c: Case, r: Revision) -> Any:
    handled = c.fault(r).handled
    marked = _has(handled.fault.error_code, PFERR_PRIVATE_ACCESS)
    return c.given(handled.called, handled.fault.is_private == marked)


@claim(
    "nothing-is-private",
    "No fault is ever private: so it is with the error code cut to 32 bits on its way.",
    "h1+10 h3+01",
    NEVER_PRIVATE,
    having(but="never-private"),
)
def _(c: Case, r: Revision) -> Any:
    return c.given(c.fault(r).handled.called, no(_is_private(c, r)))


@claim(
    "look-ups-where-needed",
    "On its way to the handler, a fault is looked up for at most once, and only if it is a software-protected VM's "
    "and not reserved.",
    "h2+14 h2+15 h2+16 h2+17 h3-01",
    f"{STRIPS} {CALLERS_STRIP}",
    f"{LOOKS_UP} {BORROWS}",
    empty=NO_ATTRIBUTES,
)
def _(c: Case, r: Revision) -> Any:
    count = c.fault(r).lookups.count
    wanted = (c.vm_type == KVM_X86_SW_PROTECTED_VM) & no(_has(c.error_code, PFERR_RSVD_MASK))
    return c.given(count != 0, (count == 1) & wanted)


def _handled_lookups(c: Case, r: Revision) -> tuple[Any, Any]:
    """How often the handler looks a fault up: before it tries the fast path, and in the fault-in."""
    vcpu, fault = c.vcpu(r), c.fault(r).handled.fault
    _, fast = c.step("page_fault_can_be_fast", r)(vcpu.vm, fault, c.any(Host, "host").accessed_dirty)
    memory = c.any(Memory, "memory")
    found = c.step("kvm_faultin_pfn", r)(vcpu, fault, r.step("ACC_ALL"), memory)
    return fast.count, found.lookups.count


class Host(NamedTuple):
    """What the host is like, as far as the handler's first step asks."""

    accessed_dirty: bool


@claim(
    "looked-up-twice",
    "A fault that goes all the way, through the handler's fast path and the fault-in, is looked up for at most twice.",
    "h2+14 h2+16 h2+17 h3-01",
    having(but="no-attributes compares-fast"),
    COMPARES_FAST,
)
def _(c: Case, r: Revision) -> Any:
    fast, found = _handled_lookups(c, r)
    count = c.fault(r).lookups.count + fast + found
    return c.given(c.fault(r).handled.called & (count != 0), count <= 2)


@claim(
    "ordinary-looked-up-once",
    "A fault of a VM without private memory that goes all the way is looked up for at most once, in the fault-in.",
    "h2+16 h3-01",
    f"{STRIPS} {CALLERS_STRIP} {BORROWS}",
    LOOKS_UP,
)
def _(c: Case, r: Revision) -> Any:
    private_types = (KVM_X86_SW_PROTECTED_VM, KVM_X86_SNP_VM, KVM_X86_TDX_VM)
    fast, found = _handled_lookups(c, r)
    before = c.fault(r).lookups.count
    ordinary = c.fault(r).handled.called & no(is_one_of(c.vm_type, private_types))
    return c.given(ordinary & (before + fast + found != 0), (before + fast == 0) & (found == 1))


class Walked(NamedTuple):
    """What the handler finds out by a walk of L1's nested page table: the page of L1's that L2's is mapped to."""

    gfn: int


def _asks(c: Case, r: Revision, walked: Any = None) -> tuple[Any, Any]:
    """The look-ups before the handler's call, and those of the fault-in: about `walked`, if tables led to it."""
    vcpu, fault = c.vcpu(r), c.fault(r).handled.fault
    memory = c.any(Memory, "memory")
    if walked is not None:  # a width of addresses, so that the witness can be run; no look-up depends on it
        fault, memory = fault._replace(gfn=walked), memory._replace(maxphyaddr=52)
    return c.fault(r).lookups, c.step("kvm_faultin_pfn", r)(vcpu, fault, r.step("ACC_ALL"), memory).lookups


@claim(
    "looked-up-is-compared",
    "Where there are no page tables to walk (a direct MMU), and no bit of the address says shared (TDX), the look-up "
    "before the handler's call and the comparison in the fault-in, if both are made, are about the same page.",
    "h2+10 h2+17",
    having(but="no-attributes"),
    empty=NO_ATTRIBUTES,
)
def _(c: Case, r: Revision) -> Any:
    first, second = _asks(c, r)
    mmu, plain = c.vcpu(r).mmu, c.vcpu(r).vm.direct_bits == 0
    both = mmu.direct & plain & c.fault(r).handled.called & (first.count != 0) & (second.count != 0)
    return c.given(both, first.gfn == second.gfn)


@claim(
    "l2-looked-up-is-compared",
    "For a guest of the guest whose nested page table L1 keeps, too, the look-up before the handler's call and the "
    "comparison in the fault-in, if both are made, are about the same page.",
    "h2+10 h2+11 h2+12",
    "",
    having(but="no-attributes"),
    empty=NO_ATTRIBUTES,
)
def _(c: Case, r: Revision) -> Any:
    first, second = _asks(c, r, c.any(Walked, "walked").gfn & GFN_MASK)
    mmu = c.vcpu(r).mmu
    both = mmu.nested & no(mmu.direct) & c.fault(r).handled.called & (first.count != 0) & (second.count != 0)
    return c.given(both, first.gfn == second.gfn)


class L2Fault(NamedTuple):
    """A nested page fault of L2's that is L1's own: what the CPU reported, and what KVM's walk of L1's table found."""

    info: int  # EXITINFO1
    error_code: int  # 16 bits


def _l1_sees(c: Case, r: Revision) -> tuple[Any, Any]:
    fault = c.any(L2Fault, "l2")
    return fault.info, c.step("nested_svm_inject_npf_exit", r)(fault.info, fault.error_code & 0xFFFF)


@claim(
    "l1-sees-only-the-cpus-49",
    "The EXITINFO1 that KVM makes for L1 has bit 49 only if the CPU's has it: KVM's own does not reach L1.",
    "h1+10",
    having(but="tdx"),
    empty=having("tdx"),
)
def _(c: Case, r: Revision) -> Any:
    info, told = _l1_sees(c, r)
    return c.given(_has(told, PFERR_PRIVATE_ACCESS), _has(info, PFERR_PRIVATE_ACCESS))


@claim(
    "l1-sees-no-49",
    "The EXITINFO1 that KVM makes for L1 never has bit 49.",
    "h1+10",
    having("tdx"),
    having(but="tdx"),
)
def _(c: Case, r: Revision) -> Any:
    _, told = _l1_sees(c, r)
    return no(_has(told, PFERR_PRIVATE_ACCESS))


@claim(
    "private-is-never-emulated",
    "A private fault that reaches the handler is never emulated.",
    "h3+01",
    having(but="never-private emulates-private write-protected"),
    f"{having('emulates-private')} {WRITE_PROTECTED}",
    empty=NEVER_PRIVATE,
    source='Linux `arch/x86/kvm/mmu/mmu.c`, commit `989a84c93f59` ("KVM: x86/mmu: Trigger unprotect logic only on '
    'write-protection page faults") (v6.12); Linux 6.12.117, kvm_mmu_do_page_fault(), kvm_mmu_page_fault()',
)
def _(c: Case, r: Revision) -> Any:
    return c.given(_is_private(c, r), no(c.fault(r).emulation.called))


@claim(
    "private-is-not-emulated",
    "If the handler's answer to a private fault is EMULATE, user space gets -EFAULT and an exit that says private; "
    "nothing is emulated, and nothing counted as emulated.",
    "h3+01",
    having(but="never-private emulates-private"),
    having("emulates-private"),
    NEVER_PRIVATE,
)
def _(c: Case, r: Revision) -> Any:
    o = c.fault(r)
    told = (o.handled.exit.exit_reason == KVM_EXIT_MEMORY_FAULT) & (
        o.handled.exit.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE
    )
    refused = (o.ret == -EFAULT) & told & no(o.emulation.called) & (o.stats.emulate == 0)
    return c.given(_is_private(c, r) & (c.pf_ret == ANSWERS.index("EMULATE")), refused)


# --- what the later patches close ---


@claim(
    "private-and-reserved-is-not-mmio",
    "A fault that is private and reserved at once is not taken for MMIO.",
    "h2+07 h2+15",
    f"posted_series {REFUSES_RESERVED}",
    "merged_patch",
    empty=STRIPS,
)
def _(c: Case, r: Revision) -> Any:
    way = c.step("route", r)(c.vcpu(r).mmu, c.vcpu(r).vm, c.cr2_or_gpa, c.error_code)
    both = _has(way.error_code, PFERR_PRIVATE_ACCESS) & _has(way.error_code, PFERR_RSVD_MASK)
    return c.given(both, way.to != TO_MMIO)


@claim(
    "private-and-reserved-is-refused",
    "A fault that is private and reserved at once ends in -EFAULT, and no exit reason invites user space to mend it.",
    "h2+07 h2+15",
    REFUSES_RESERVED,
    "posted_series merged_patch",
    empty=STRIPS,
)
def _(c: Case, r: Revision) -> Any:
    o = c.fault(r)
    code = c.step("sanitize", r)(c.error_code)[0]
    both = _has(code, PFERR_PRIVATE_ACCESS) & _has(code, PFERR_RSVD_MASK) & c.root_valid
    return c.given(both, (o.ret == -EFAULT) & (o.handled.exit.exit_reason == 0))


@claim(
    "goes-on-means-agreed",
    "The fault-in lets a fault go on, to a frame or to emulated memory, only if the fault's idea of the page, private "
    "or shared, is user space's.",
    "h3+01",
    COMPARES_FIRST,
    having(but="compares-first no-attributes"),
)
def _(c: Case, r: Revision) -> Any:
    return c.given(c.fault_in(r).ret == RET_PF_CONTINUE, c.is_private == _private_page(c))


@claim(
    "private-is-never-mmio",
    "A private fault never becomes MMIO: nothing is cached as such, and no missing slot is mapped.",
    "h3+01",
    COMPARES_FIRST,
    having(but="compares-first no-attributes"),
)
def _(c: Case, r: Revision) -> Any:
    f = c.fault_in(r)
    cached = (f.cache.gfn != 0) | (f.cache.gen != 0)
    unmapped = (f.ret == RET_PF_CONTINUE) & (f.found.pfn == KVM_PFN_NOSLOT)
    return c.given(c.is_private, no(cached | unmapped))


@claim(
    "page-ready-asks-again",
    "When a page becomes ready, the fault that maps it is private exactly if the page is declared private.",
    "h3-01 h3+01",
    LOOKS_UP,
    f"{STRIPS} {CALLERS_STRIP}",
)
def _(c: Case, r: Revision) -> Any:
    handled = c.page_ready(r).handled
    return c.given(handled.called, handled.fault.is_private == _private_page(c))


@claim(
    "private-page-ready-is-stopped",
    "A private fault that was put off is dropped when its page is ready.",
    "h3+01",
    STOPS_READY,
    f"{having('strips', but='stops-ready')} {having('callers-strip', but='stops-ready')}",
)
def _(c: Case, r: Revision) -> Any:
    return c.given(_has(c.put_off_code, PFERR_PRIVATE_ACCESS), no(c.page_ready(r).handled.called))


# --- what the patch changes ---


def same(c: Case, way: str, a: str | Revision, b: str | Revision, but: str = "") -> Any:
    """Whether all outputs of a way are the same in two revisions, but for those named."""
    outputs = (o for o in common_outputs(way, a, b) if o.column not in but.split())
    return no(one_of(c.differs(way, o, a, b) for o in outputs))


def _clean(c: Case) -> Any:
    return no(_has(c.error_code, PFERR_SYNTHETIC_MASK))


@claim(
    "other-vms-see-nothing",
    "For a VM that is not software-protected, in states that can exist and without a caller's bit 48 or 49, nothing "
    "differs from before but the number of attribute look-ups.",
    "h2+16 h3-01 h3+01",
    "posted merged_patch guest_enc_gated",
    "posted_u32 posted_series v6_10 guest_enc_ungated",
)
def _(c: Case, r: Revision) -> Any:
    others = c.reachable("before") & _clean(c) & (c.vm_type != KVM_X86_SW_PROTECTED_VM)
    return c.given(others, same(c, "kvm_mmu_page_fault", "before", r, "attr_lookups attr_gfn"))


class KnownDifference(NamedTuple):
    """A difference between `before` and `posted`: where, in what states, and what differs in all of them."""

    name: str
    sentence: str
    where: dict[str, Callable[[Case], Any]]  # by way
    columns: tuple[str, ...]


def _reaches_handler(c: Case) -> Any:
    return c.fault("before").handled.called


def _reserved(c: Case) -> Any:
    return _has(c.error_code, PFERR_RSVD_MASK)


FIVE = (
    KnownDifference(
        "callers-bits",
        "a caller's bit 48 or 49: both go, with another warning; before, 49 went through",
        {"kvm_mmu_page_fault": lambda c: no(_clean(c))},
        ("warns",),
    ),
    KnownDifference(
        "marked-code",
        "a private fault's error code carries bit 49",
        {"kvm_mmu_page_fault": lambda c: c.root_valid & _clean(c) & _declared(c)},
        ("f_error_code",),
    ),
    KnownDifference(
        "reserved-on-private",
        "a reserved fault on a private page that reaches the handler is shared; before, private",
        {
            "kvm_mmu_page_fault": lambda c: (
                _reaches_handler(c) & _reserved(c) & (c.vm_type == KVM_X86_SW_PROTECTED_VM) & _private_page(c)
            )
        },
        ("f_is_private",),
    ),
    KnownDifference(
        "page-ready",
        "a page that became ready and private is asked for as shared; before, as private",
        {"kvm_arch_async_page_ready": lambda c: c.page_ready("before").handled.called & _private_page(c)},
        ("f_is_private",),
    ),
    KnownDifference(
        "look-ups",
        "no look-up for other VMs, for reserved faults, for pages that became ready; before, one for each fault "
        "that reached the handler",
        {
            "kvm_mmu_page_fault": lambda c: (
                c.cfg_private_mem
                & _reaches_handler(c)
                & (_reserved(c) | (c.vm_type != KVM_X86_SW_PROTECTED_VM))
            ),
            "kvm_arch_async_page_ready": lambda c: c.cfg_private_mem & c.page_ready("before").handled.called,
        },
        ("attr_lookups",),
    ),
)
"""The five differences between before and posted, over states that can exist.

Source: mails <20240228024147.41573-6-seanjc@google.com>, <20240228024147.41573-5-seanjc@google.com>; the kernel
vectors of both revisions, row by row.
"""


@claim(
    "five-differences",
    "Over states that can exist this kernel differs from before in exactly five ways: something differs in each "
    "of the five, and nothing outside of them.",
    "h1+10 h1+11 h2+04 h2+05 h2-06 h2-07 h2+14 h2+15 h2+16 h2+17 h2+18 h3-01 h3+01",
    "posted",
    f"posted_series merged_patch v6_10 {CUT} {BORROWS}",
)
def _(c: Case, r: Revision) -> Any:
    can_be = c.reachable("before") & c.reachable("posted")
    parts = []
    for way in WAYS:
        outputs = {o.column: c.differs(way, o, "before", r) for o in common_outputs(way, "before", r)}
        here = [(d, can_be & d.where[way](c)) for d in FIVE if way in d.where]
        inside = [c.given(where, one_of(outputs[column] for column in d.columns)) for d, where in here]
        outside = implies(can_be & one_of(outputs.values()), one_of(where for _, where in here))
        parts += [*inside, outside]
    return all_of(parts)


# --- the other way: borrowing bit 34 ---


def _borrowed(c: Case, gated: bool) -> Any:
    """Where the borrowed bit's is_private is not posted's, in a kernel with software-protected VMs."""
    sw = c.vm_type == KVM_X86_SW_PROTECTED_VM
    has_private = sw | is_one_of(c.vm_type, (KVM_X86_SNP_VM, KVM_X86_TDX_VM))
    encrypted = _has(c.error_code, PFERR_GUEST_ENC_MASK)
    reserved_on_private = sw & _private_page(c) & _reserved(c)
    stray = sw & no(_private_page(c)) & encrypted
    others = no(sw) & encrypted & (has_private if gated else True)
    return reserved_on_private | stray | others


def _borrowed_differs(c: Case, r: Revision, gated: bool) -> Any:
    built = c.cfg_sw_protected & c.cfg_private_mem & _clean(c)
    of = {
        o.column: c.differs("kvm_mmu_page_fault", o, "posted", r) for o in WAYS["kvm_mmu_page_fault"].outputs
    }
    reached = c.fault("posted").handled.called
    exact = of["f_is_private"] == (reached & _borrowed(c, gated))
    rest = (o for name, o in of.items() if name not in ("f_error_code", "attr_lookups", "attr_gfn"))
    return c.given(built, exact & implies(one_of(rest), of["f_is_private"]))


@claim(
    "gated-parts-here",
    "Borrowing bit 34 behind the gate differs from posted exactly here: a reserved fault on a private page, a stray "
    "bit 34 on a shared page of a software-protected VM, and bit 34 of an SNP or TDX VM.",
    holds="guest_enc_gated",
    fails="before guest_enc_ungated",
    source="mail <20240227232100.478238-16-pbonzini@redhat.com>, 2024-02-27",
)
def _(c: Case, r: Revision) -> Any:
    return _borrowed_differs(c, r, gated=True)


@claim(
    "ungated-parts-here",
    "Borrowing bit 34 without a gate differs from posted there, and at bit 34 of every other VM.",
    holds="guest_enc_ungated",
    fails="before guest_enc_gated",
    source="mail <c560cdadb7d0dc88b831cf1a5382cf6f166ff022.1708933498.git.isaku.yamahata@intel.com>, 2024-02-26",
)
def _(c: Case, r: Revision) -> Any:
    return _borrowed_differs(c, r, gated=False)


def _encrypted(c: Case) -> Any:
    """An encrypted access of a VM without private memory: SEV or SEV-ES, which older kernels number 0."""
    sev = is_one_of(c.vm_type, (KVM_X86_DEFAULT_VM, KVM_X86_SEV_VM, KVM_X86_SEV_ES_VM))
    return sev & (c.attrs == 0) & _clean(c) & _has(c.error_code, PFERR_GUEST_ENC_MASK)


@claim(
    "encrypted-is-not-private",
    "An encrypted access of an SEV or SEV-ES VM is a shared fault.",
    "h1+10 h3+01",
    " ".join(name for name in ALL.split() if name != "guest_enc_ungated"),
    "guest_enc_ungated",
    source="mail <ZeiBLjzDsEN0UsaW@google.com>, 2024-03-06",
)
def _(c: Case, r: Revision) -> Any:
    handled = c.fault(r).handled
    return c.given(_encrypted(c) & handled.called, no(handled.fault.is_private))


@claim(
    "encrypted-access-is-refused",
    "Every encrypted access of an SEV or SEV-ES VM to an ordinary slot, unless an invalidation makes it try again, "
    "ends in -EFAULT and a memory-fault exit: the VM cannot run.",
    holds="guest_enc_ungated",
    fails="before posted v6_10 guest_enc_gated",
    source="mail <Zdar_PrV4rzHpcGc@google.com>, 2024-02-22",
)
def _(c: Case, r: Revision) -> Any:
    handled = c.fault(r).handled
    memory = c.any(Memory, "memory")
    slot = (memory.slot.id < KVM_USER_MEM_SLOTS) & no(_has(memory.slot.flags, KVM_MEMSLOT_INVALID))
    quiet = no(memory.invalidation.covers_gfn)
    f = c.step("kvm_faultin_pfn", r)(c.vcpu(r), handled.fault, r.step("ACC_ALL"), memory)
    refused = (f.ret == -EFAULT) & (f.exit.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE)
    return c.given(_encrypted(c) & handled.called & handled.fault.slot & slot & quiet, refused)


# --- beside the patch ---


class Access(NamedTuple):
    """An access that the emulator makes for the guest."""

    word: int
    cpl: int
    other_cpl: int
    rflags_ac: bool
    cr4_smap: bool
    page_user: bool


@claim(
    "implicit-access-has-no-leave",
    "With bit 48 neither the guest's leave (AC) nor its privilege level changes what SMAP forbids.",
    "h1+02 h1+03 h1+04 h2-01 h2-02",
    ALL,
)
def _(c: Case, r: Revision) -> Any:
    a, smap = c.any(Access, "access"), c.step("smap_applies", r)
    word = a.word | PFERR_IMPLICIT_ACCESS
    asked = smap(word, a.cpl, a.rflags_ac, a.cr4_smap, a.page_user)
    return asked == smap(word, a.other_cpl, no(a.rflags_ac), a.cr4_smap, a.page_user)


@claim(
    "mmio-spte-keeps-its-page",
    "An MMIO SPTE gives back the gfn and the generation that it was made of, as far as they fit.",
    "",
    ALL,
)
def _(c: Case, r: Revision) -> Any:
    form = c.step("mmio_format", r)(c.mmio_cfg, True)
    fits = (c.mmio_gfn << 12 & U64_MAX) & ~(form.lower_gfn_mask | form.nonpresent_or_rsvd_mask) == 0
    spte = c.step("make_mmio_spte", r)(form, c.gen, c.mmio_gfn, c.mmio_access)
    gfn = c.step("get_mmio_spte_gfn", r)(form, spte)
    gen = c.step("get_mmio_spte_generation", r)(spte)
    kept = (gfn == c.mmio_gfn) & (gen == c.gen & c.step("mmio_spte_gen_mask", r)())
    return c.given(fits & (c.mmio_gfn & ~((1 << 52) - 1) == 0), kept)


# --- beside the solver ---

ENTRY_FUNCTIONS: tuple[str | Callable[..., Any], ...] = (
    "kvm_mmu_page_fault", "source", "kvm_arch_async_page_ready", "kvm_arch_vcpu_pre_fault_memory", "kvm_faultin_pfn",
    "smap_applies", "make_mmio_spte", "kvm_vm_ioctl_set_mem_attributes", "page_fault_can_be_fast",
    "kvm_memslot_flush_zap_all", "walked_is_private", "nested_svm_inject_npf_exit", "nested_ept_inject_page_fault",
    *(way.row for way in WAYS.values()),
)  # fmt: skip
"""Functions from which every function of the path is reached."""


def steps(revision: Revision) -> dict[str, Summary]:
    """Every function of the path as `revision` has it, by fingerprint."""
    found: dict[str, Summary] = {}

    def bind(function: FunctionType) -> Summary:
        summary = Summary(function)
        found[summary.key] = summary
        return summary

    for function in ENTRY_FUNCTIONS:
        revision.link(function, bind)
    return found


_flaws: dict[str, list[str]] = {}


def flaws(step: Summary) -> list[str]:
    """Say what is wrong with the paths that the explorer finds through one function, given any arguments."""
    if step.key not in _flaws:
        code, hints = step.function.__code__, get_type_hints(step.function)
        arguments = [any_value(hints.get(name, int), name) for name in code.co_varnames[: code.co_argcount]]
        _flaws[step.key] = list(complete(all_paths(step.function, *arguments)))
    return _flaws[step.key]


@claim(
    "paths-are-complete",
    "The paths that the explorer finds through each function cover every state, and no two of them overlap.",
    holds=ALL,
    strength=EXHAUSTED,
)
def _(r: Revision) -> tuple[bool, int]:
    found = steps(r)
    return not any(flaws(step) for step in found.values()), len(found)


@claim(
    "names-tell-the-code",
    "Every combination of named bits is told by its names, and read back from them.",
    "h1+10",
    "posted",
    strength=EXHAUSTED,
)
def _(r: Revision) -> tuple[bool, int]:
    masks = [bit.mask for bit in PFERR]
    count = 1 << len(masks)
    codes = (sum(mask for n, mask in enumerate(masks) if code >> n & 1) for code in range(count))
    return all(encode(describe(code)) == code for code in codes), count


@claim(
    "engines-agree",
    "For every way into the path, the plain functions and the solver's terms give the same outcomes, and so do the "
    "tables' evaluation and the compiled code.",
    holds=" ".join(REVISIONS),
    strength=TESTED,
)
def _(r: Revision) -> tuple[bool, int]:
    return all(_engines_agree(name, r) for name in WAYS), ENGINE_ROWS * len(WAYS)


ENGINE_ROWS = 100
"""How many random inputs of each way the engines are given; the solver is given every fifth."""

_agreed: dict[tuple[str, str], bool] = {}


def _engines_agree(name: str, r: Revision) -> bool:
    """Whether the engines agree on one way; asked once of revisions that do the same there."""
    key = name, fingerprint(name, r)
    if key not in _agreed:
        draw = random.Random(1)
        known = {c.column: answers(r) if c.column == "pf_ret" else words(c, r) for c in WAYS[name].inputs}
        rows = [
            {column.column: any_number(column, draw) for column in WAYS[name].inputs}
            for _ in range(ENGINE_ROWS)
        ]
        rows = [
            {n: v % len(known[n]) if n in ("pf_ret", "kind") else v for n, v in row.items()} for row in rows
        ]
        _agreed[key] = _terms_agree(name, rows[::5], r) and _tables_agree(name, rows, r)
    return _agreed[key]


def _terms_agree(name: str, rows: list[dict[str, int]], r: Revision) -> bool:
    """Whether the solver's terms become what the plain functions say, if numbers are put in."""
    outputs, case = [o for o in common_outputs(name, r, r) if "(" not in o.path], Case()
    cells = [case.cell(name, output, r) for output in outputs]
    for row in rows:
        numbers = Case(row)
        plain = [numbers.cell(name, output, r) for output in outputs]
        same = all_of(
            (reached == was) & (no(was) | (value == number))
            for (reached, value), (was, number) in zip(cells, plain, strict=True)
        )
        if not is_true(same, [(case.terms[n], value) for n, value in row.items() if n in case.terms]):
            return False
    return True


def _tables_agree(name: str, rows: list[dict[str, int]], r: Revision) -> bool:
    """Whether a table of the rows says what the plain functions say, uncompiled and compiled."""
    import pandas as pd

    from kvm_pf.run.batch import evaluate

    known, kind, columns = answers(r), WAYS[name].kind, {c.column: c for c in WAYS[name].inputs}
    frame = pd.DataFrame(
        [{n: columns[n].labels[v] if columns[n].labels else v for n, v in row.items()} for row in rows]
    )
    if "pf_ret" in frame:
        frame["pf_ret"] = [known[ANSWERS[row["pf_ret"]]] for row in rows]
    plain, compiled = (evaluate(frame, r, kind=kind, engine=engine) for engine in ("plain", "compiled"))
    agree = bool(plain.equals(compiled))
    outputs = [
        o for o in common_outputs(name, r, r) if o.kind in ("u64", "int", "bool") and "(" not in o.path
    ]
    for row, told in zip(rows, plain.to_dict("records"), strict=True):
        case = Case(row)
        for output in outputs:
            reached, value = case.cell(name, output, r)
            if output.column == "mmio_ret" and reached:
                value = known[ANSWERS[value]] if value in range(len(known)) else value
            agree = agree and (told[output.column] == value if reached else pd.isna(told[output.column]))
    return agree


def any_number(column: Input, draw: random.Random) -> int:
    """Draw a number that a column takes: its default, a mask of few bits, with bit 63 or at a border, or anything."""
    low, high, _ = limits(column)
    if column.kind != "u64":
        return draw.randint(0 if column.column == "pf_ret" else low, high)
    few, top = 1 << draw.randrange(64) | 1 << draw.randrange(64), 1 << 63
    borders = (top - 1, top, high - 1, high, top | default(column), top | few)
    usual, anything = draw.choice((default(column), few)), draw.getrandbits(64)
    return draw.choice((usual, usual, anything, draw.choice(borders))) & high


claim(
    "never-released",
    "The sanitiser in the form of the patch, in kvm_mmu_page_fault() and for both bits, was in no release.",
    "h2+04 h2+05",
    "posted",
    strength=STATED,
    source="Linux `arch/x86/kvm/svm/svm.c`, commit `dee281e4b435` (v6.10), merged before commit `b3d5dc629c32` "
    '("KVM: x86/mmu: Use synthetic page fault error code to indicate private faults") (v6.10)',
)(None)
claim(
    "private-mmio-is-the-guests-bug",
    "A private access to emulated MMIO is a bug of the guest.",
    holds=COMPARES_FIRST,
    strength=STATED,
    source="mail <ZbmenP05fo8hZU8N@google.com>, 2024-01-31",
)(None)
claim(
    "hardware-sets-bit-34",
    "A CPU that knows SNP sets bit 34 for every access with an effective C-bit of 1, of SEV and SEV-ES VMs too.",
    holds=BORROWS,
    strength=STATED,
    source="mail <Zdar_PrV4rzHpcGc@google.com>, 2024-02-22, as far as its writer could tell; mail "
    "<Zd9hrfJ5xRI6HeZp@google.com>, 2024-02-28: of two systems tested, the one that knows SNP",
)(None)
