# SPDX-License-Identifier: GPL-2.0-only
"""Where error codes come from: the exits, each with the handler that makes an address and a code of it.

Two other callers of the fault path have no exit: a page that became ready later, and user space that wants
pages mapped ahead.  As posted; what other revisions do differently stands in `kvm_pf.revisions`.
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_MASK,
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from kvm_pf.fault import NO_FAULT, kvm_mmu_do_page_fault
from kvm_pf.state import (
    EINVAL,
    NO_LOOKUP,
    NO_STATS,
    PAGE_SHIFT,
    RESUME_GUEST,
    RET_PF_RETRY,
    Handled,
    Lookups,
    Stats,
    Vcpu,
)

# The exits.
KIND_EPT = 0  # VMX, EPT violation
KIND_MISCFG = 1  # VMX, EPT misconfiguration
KIND_NPF = 2  # SVM, nested page fault
KIND_PF = 3  # the guest's own #PF, intercepted: shadow paging, and async page faults for KVM itself
KIND_TDX = 4  # EPT violation of a trust domain (from 7.3)

# Encrypted guests of AMD.
SEV_NONE, SEV_SEV, SEV_ES, SEV_SNP = 0, 1, 2, 3

# What comes to be true while a fault is retried.
BREAK_NONE = 0
BREAK_EVENTS = 1  # an event waits for the vCPU
BREAK_SIGNAL = 2  # a signal waits for the thread
BREAK_VM_DEAD = 3  # the VM was marked dead
BREAK_SLOT_INVALID = 4  # the memslot is being deleted
PATIENCE = 8  # calls after which a signal waits in any case, so that every loop ends

# What kvm_mmu_page_fault() is not asked for.
MMIO_TO_MMU, MMIO_FAST, MMIO_RESUME = 0, 1, 2

# vcpu->arch.apf.host_apf_flags.  Source: Linux `arch/x86/include/uapi/asm/kvm_para.h`.
KVM_PV_REASON_PAGE_NOT_PRESENT = 1

PF_LOWER32_MASK = (1 << 32) - 1
PF_UPPER32_MASK = PF_LOWER32_MASK << 32
"""A #PF has 32 bits of error code."""

# The warnings of this module, as bits in the order in which one exit can fire them.
WARN_NPF_SYNTHETIC = 1 << 0
WARN_PF_UPPER32 = 1 << 1
WARN_APF_FLAGS = 1 << 2
WARN_SOURCE_BUG = 1 << 3
WARN_ASYNC_PRIVATE = 1 << 4
WARN_PREFAULT = 1 << 5

SOURCE_WARN_NAMES = ("npf_synthetic", "pf_upper32", "other", "kvm_bug", "async_private", "prefault")
"""Names of these bits, lowest first; the first four as in the kernel vectors' `warns` column."""


class Guest(NamedTuple):
    """What an exit handler may ask about the vCPU and its VM, besides the exit itself."""

    guest_mode: bool = False  # the vCPU runs L2
    fast_mmio: bool = False  # the fast-MMIO bus takes a zero-byte write to the address
    event_pending: bool = False  # an event waits to be reinjected
    vectoring: bool = False  # the exit came while an event was being delivered
    sev_es: bool = False  # sev_es_guest(): SEV-ES or SNP
    snp: bool = False  # sev_snp_guest()
    nrips: bool = False  # the CPU tells the next instruction's address
    next_rip_known: bool = False  # and did so for this exit
    gmet: bool = False  # guest-mode execute trap in use
    cpl: int = 0  # privilege level, 0 to 3
    mbec: bool = False  # root_role.cr4_smep: EPT tells user from supervisor execution
    direct_bits: int = 0  # kvm->arch.gfn_direct_bits: the gfn bit that says "shared" (TDX), else 0


class Retry(NamedTuple):
    """How a fault that is retried at once goes on."""

    retries: int = 0  # the MMU says RETRY that many times before its answer
    break_kind: int = BREAK_NONE  # BREAK_*: what comes to be true …
    break_after: int = 0  # … after that many calls


class Event(NamedTuple):
    """One exit, and the MMU's answer to it."""

    kind: int  # KIND_*
    info: int  # u64; ept, tdx: exit qualification; npf: EXITINFO1; pf: error code
    addr: int  # u64; ept, miscfg, tdx: GPA; npf: EXITINFO2; pf: virtual address
    insn: bool = False  # instruction bytes are handed on
    insn_len: int = 0
    apf_flags: int = 0  # host_apf_flags
    tdx_pending: bool = False  # extended qualification: the page is pending
    guest: Guest = Guest()
    mmu_ret: int = RESUME_GUEST  # kvm_mmu_page_fault()'s answer
    retry: Retry = Retry()


class Trace(NamedTuple):
    """What kvm_page_fault's tracepoint got."""

    called: bool
    addr: int  # u64
    error_code: int  # u64


class MmuCall(NamedTuple):
    """What kvm_mmu_page_fault() got, the last time if several."""

    called: bool
    calls: int
    addr: int  # u64
    error_code: int  # u64
    insn: bool
    insn_len: int


class RmpFault(NamedTuple):
    """What sev_handle_rmp_fault() got."""

    called: bool
    error_code: int  # u64


class SourceOutcome(NamedTuple):
    """Everything that an exit's handler returned, called and changed."""

    ret: int  # negative: error to user space; 0: exit to user space; positive: resume the guest
    warns: int  # WARN_* bits of this module
    trace: Trace
    mmu: MmuCall
    rmp: RmpFault
    fast_mmio: bool  # the fast-MMIO bus took it: traced, and the instruction skipped
    unprotect_virt: bool  # kvm_mmu_unprotect_page_virt() was called
    apf_wait: bool  # the task went to sleep until its page is there
    vm_dead: bool
    vm_bugged: bool


NO_TRACE = Trace(called=False, addr=0, error_code=0)
NO_MMU_CALL = MmuCall(called=False, calls=0, addr=0, error_code=0, insn=False, insn_len=0)
NO_RMP_FAULT = RmpFault(False, 0)


def settled(ret: int, warns: int, fast_mmio: bool, apf_wait: bool) -> SourceOutcome:
    """Give the outcome of an exit that does not come to the MMU."""
    return SourceOutcome(
        ret=ret,
        warns=warns,
        trace=NO_TRACE,
        mmu=NO_MMU_CALL,
        rmp=NO_RMP_FAULT,
        fast_mmio=fast_mmio,
        unprotect_virt=False,
        apf_wait=apf_wait,
        vm_dead=False,
        vm_bugged=False,
    )


def without_mmu(ret: int, warns: int) -> SourceOutcome:
    """Give the outcome of an exit of which nothing but a result is left."""
    return settled(ret, warns, fast_mmio=False, apf_wait=False)


def skipped_write(warns: int) -> SourceOutcome:
    """Give the outcome of a write that the fast-MMIO bus took."""
    return settled(RESUME_GUEST, warns, fast_mmio=True, apf_wait=False)


def with_mmu(ret: int, warns: int, trace: Trace, mmu: MmuCall, rmp: RmpFault) -> SourceOutcome:
    """Give the outcome of an exit that the MMU settled."""
    return SourceOutcome(
        ret=ret,
        warns=warns,
        trace=trace,
        mmu=mmu,
        rmp=rmp,
        fast_mmio=False,
        unprotect_virt=False,
        apf_wait=False,
        vm_dead=False,
        vm_bugged=False,
    )


def mmu_answer(event: Event, calls: int) -> int:
    """Return the result of call number `calls` of kvm_mmu_page_fault(): it is given, not worked out here."""
    return RET_PF_RETRY if calls <= event.retry.retries else event.mmu_ret


def came_true(retry: Retry, kind: int, calls: int) -> bool:
    """Say whether the circumstance `kind` (BREAK_*) is there after `calls` calls."""
    return retry.break_kind == kind and calls >= retry.break_after


def signal_pending(retry: Retry, calls: int) -> bool:
    """Say whether a signal waits for the thread after `calls` calls."""
    return came_true(retry, BREAK_SIGNAL, calls) or calls >= PATIENCE


# --- SVM: nested page fault ---


def npf_synthetic(error_code: int) -> tuple[int, int]:
    """Look for bits that only KVM may set; return the code and the warnings.  #NPF does not look yet.

    Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.8).
    """
    return error_code, 0


def npf_mmio(guest: Guest, error_code: int) -> int:
    """Decide whether emulated MMIO goes to the MMU (MMIO_*): always.

    Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.8).
    """
    return MMIO_TO_MMU


def npf_error_code(guest: Guest, error_code: int) -> int:
    """Make an error code (u64) of EXITINFO1: it is one already.

    Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.8).
    """
    return error_code


def npf_rmp_fault(error_code: int, ret: int) -> RmpFault:
    """Handle a conflict with the RMP after the MMU answered `ret`: there are no SNP hosts yet.

    Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.8).
    """
    return NO_RMP_FAULT


def npf_interception(event: Event) -> SourceOutcome:
    """Handle #NPF: the CPU's own error code, with what little KVM adds.

    Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.8).
    """
    error_code, warns = npf_synthetic(event.info)
    way = npf_mmio(event.guest, error_code)
    if way == MMIO_RESUME:
        return without_mmu(RESUME_GUEST, warns)
    if way == MMIO_FAST:
        return skipped_write(warns)
    error_code = npf_error_code(event.guest, error_code)
    trace = Trace(called=True, addr=event.addr, error_code=error_code)
    mmu = MmuCall(
        called=True, calls=1, addr=event.addr, error_code=error_code, insn=event.insn, insn_len=event.insn_len
    )
    ret = mmu_answer(event, 1)
    return with_mmu(ret, warns, trace, mmu, npf_rmp_fault(error_code, ret))


# --- VMX: EPT violation and misconfiguration ---


def ept_error_code(q: int, mbec: bool, private_gpa: bool) -> int:
    """Translate an exit qualification (u64) into an error code (u64).

    A read counts as a user access, because EPT's readable bit plays the user bit.  Without a valid
    linear address the fault counts as one on the guest's page tables.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, handle_ept_violation() (v6.8).
    """
    error_code = PFERR_USER_MASK if q & EPT_VIOLATION_ACC_READ != 0 else 0
    error_code |= PFERR_WRITE_MASK if q & EPT_VIOLATION_ACC_WRITE != 0 else 0
    error_code |= PFERR_FETCH_MASK if q & EPT_VIOLATION_ACC_INSTR != 0 else 0
    error_code |= PFERR_PRESENT_MASK if q & EPT_VIOLATION_RWX_MASK != 0 else 0
    return error_code | (
        PFERR_GUEST_FINAL_MASK if q & EPT_VIOLATION_GVA_TRANSLATED != 0 else PFERR_GUEST_PAGE_MASK
    )


def vt_is_tdx_private_gpa(direct_bits: int, gpa: int) -> bool:
    """Say whether `gpa` (u64) is private to a trust domain: it lacks the "shared" bit, if there is one.

    `direct_bits` (u64) is a mask of gfn bits, 0 for every other VM.

    Source: Linux `arch/x86/kvm/vmx/common.h`, vt_is_tdx_private_gpa(), Linux 7.3.4.
    """
    return direct_bits != 0 and gpa & direct_bits << PAGE_SHIFT == 0


def vmx_handle_ept_violation(event: Event, q: int, calls: int) -> MmuCall:
    """Call the MMU for the qualification `q` (u64), for the time `calls`: never with instruction bytes.

    Source: Linux `arch/x86/kvm/vmx/common.h`, __vmx_handle_ept_violation(), Linux 6.12.117; before, a part
    of `arch/x86/kvm/vmx/vmx.c`, handle_ept_violation().
    """
    private = vt_is_tdx_private_gpa(event.guest.direct_bits, event.addr)
    return MmuCall(
        called=True,
        calls=calls,
        addr=event.addr,
        error_code=ept_error_code(q, event.guest.mbec, private),
        insn=False,
        insn_len=0,
    )


def handle_ept_violation(event: Event) -> SourceOutcome:
    """Handle an EPT violation.  The tracepoint gets the qualification, the MMU the error code made of it.

    The module parameter allow_smaller_maxphyaddr is taken as off.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, handle_ept_violation() (v6.8).
    """
    trace = Trace(called=True, addr=event.addr, error_code=event.info)
    mmu = vmx_handle_ept_violation(event, event.info, 1)
    return with_mmu(mmu_answer(event, 1), 0, trace, mmu, NO_RMP_FAULT)


def vmx_check_emulate_instruction(guest: Guest) -> bool:
    """Say whether an instruction may be emulated: an exit while an event is delivered never comes this far.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, vmx_check_emulate_instruction(), __vmx_handle_exit() (v6.8).
    """
    return True


def handle_ept_misconfig(event: Event) -> SourceOutcome:
    """Handle an EPT misconfiguration, which is how EPT shows MMIO: skip a fast write, else a bare RSVD.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, handle_ept_misconfig() (v6.8).
    """
    if not vmx_check_emulate_instruction(event.guest):
        return without_mmu(RESUME_GUEST, 0)
    if not event.guest.guest_mode and event.guest.fast_mmio:
        return skipped_write(0)
    mmu = MmuCall(called=True, calls=1, addr=event.addr, error_code=PFERR_RSVD_MASK, insn=False, insn_len=0)
    return with_mmu(mmu_answer(event, 1), 0, NO_TRACE, mmu, NO_RMP_FAULT)


def tdx_handle_ept_violation(event: Event) -> SourceOutcome:
    """Do nothing: this kernel has no trust domains, the exit cannot come.

    Source: inferred; `arch/x86/kvm/vmx/tdx.c` came with v6.16.
    """
    return without_mmu(0, 0)


# --- the guest's own #PF ---


def legacy_pf_code(error_code: int) -> tuple[int, int]:
    """Look for bits that no #PF has; return the code and the warnings.  Nobody looks yet.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_page_fault() (v6.8).
    """
    return error_code, 0


def unprotects_virt(guest: Guest) -> bool:
    """Say whether the page is unprotected first: yes if an event waits to be reinjected.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_page_fault() (v6.8).
    """
    return guest.event_pending


def kvm_handle_page_fault(event: Event) -> SourceOutcome:
    """Handle an intercepted #PF, or the async page fault that looks like one.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_page_fault() (v6.8).
    """
    error_code, warns = legacy_pf_code(event.info)
    if event.apf_flags == 0:
        return SourceOutcome(
            ret=mmu_answer(event, 1),
            warns=warns,
            trace=Trace(called=True, addr=event.addr, error_code=error_code),
            mmu=MmuCall(
                called=True,
                calls=1,
                addr=event.addr,
                error_code=error_code,
                insn=event.insn,
                insn_len=event.insn_len,
            ),
            rmp=NO_RMP_FAULT,
            fast_mmio=False,
            unprotect_virt=unprotects_virt(event.guest),
            apf_wait=False,
            vm_dead=False,
            vm_bugged=False,
        )
    if event.apf_flags & KVM_PV_REASON_PAGE_NOT_PRESENT != 0:
        return settled(RESUME_GUEST, warns, fast_mmio=False, apf_wait=True)
    return without_mmu(RESUME_GUEST, warns | WARN_APF_FLAGS)


def source(event: Event) -> SourceOutcome:
    """Hand an exit to its handler."""
    if event.kind == KIND_NPF:
        return npf_interception(event)
    if event.kind == KIND_EPT:
        return handle_ept_violation(event)
    if event.kind == KIND_MISCFG:
        return handle_ept_misconfig(event)
    if event.kind == KIND_TDX:
        return tdx_handle_ept_violation(event)
    return kvm_handle_page_fault(event)


# --- a page that became ready ---


class AsyncPf(NamedTuple):
    """struct kvm_async_pf: a fault put off until its page is there, and what has become of the vCPU since."""

    cr2_or_gpa: int  # u64
    error_code: int = 0  # u64, of the fault that was put off (carried from 6.10)
    direct_map: bool = True  # the MMU was direct then
    wakeup_all: bool = False  # no page: everybody is woken
    reload_ret: int = 0  # kvm_mmu_reload()'s result
    same_cr3: bool = True  # the guest's page-table root is still the same


class AsyncReady(NamedTuple):
    """What kvm_arch_async_page_ready() did; it returns nothing."""

    warns: int  # WARN_* bits of this module
    handled: Handled
    stats: Stats  # counted here, beside what is counted in `handled`


def page_ready_code(error_code: int) -> tuple[int, int]:
    """Choose the code (u64) to hand in when the page is ready, and warn: 0, whatever the fault's was.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_async_page_ready() (v6.8).
    """
    return 0, 0


def count_page_ready(r: int) -> Stats:
    """Count what the fault path answered (`r`): nothing here, it has counted itself.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_async_page_ready() (v6.8).
    """
    return NO_STATS


def kvm_arch_async_page_ready(vcpu: Vcpu, work: AsyncPf) -> AsyncReady:
    """Map a page that was not there when the guest touched it.  Nobody reads the fault path's answer.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_async_page_ready() (v6.8).
    """
    error_code, warns = page_ready_code(work.error_code)
    if warns != 0:
        return AsyncReady(warns=warns, handled=NO_FAULT, stats=NO_STATS)
    if vcpu.mmu.direct != work.direct_map or work.wakeup_all:
        return AsyncReady(warns=0, handled=NO_FAULT, stats=NO_STATS)
    if work.reload_ret != 0:
        return AsyncReady(warns=0, handled=NO_FAULT, stats=NO_STATS)
    if not vcpu.mmu.direct and not work.same_cr3:
        return AsyncReady(warns=0, handled=NO_FAULT, stats=NO_STATS)
    handled = kvm_mmu_do_page_fault(vcpu, work.cr2_or_gpa, error_code, True)
    return AsyncReady(warns=0, handled=handled, stats=count_page_ready(handled.ret))


# --- pages mapped ahead ---


class PreFault(NamedTuple):
    """struct kvm_pre_fault_memory, and what the vCPU meets on the way."""

    gpa: int  # u64
    size: int  # bytes
    allowed: bool = True  # kvm->arch.pre_fault_allowed
    reload_ret: int = 0  # kvm_mmu_reload()'s result
    level: int = 1  # PG_LEVEL_*: level at which the page comes to be mapped
    retry: Retry = Retry()


class PreFaulted(NamedTuple):
    """What kvm_arch_vcpu_pre_fault_memory() returned and handed on."""

    ret: int  # negative: error; else the number of bytes done
    warns: int  # WARN_* bits of this module
    calls: int  # calls into the fault path
    addr: int  # u64, handed on
    error_code: int  # u64, handed on
    lookups: Lookups  # attribute look-ups before the calls
    handled: Handled  # the last call


def pre_fault_refused(ret: int) -> PreFaulted:
    """Answer a request with a negative errno before anything is looked at."""
    return PreFaulted(ret=ret, warns=0, calls=0, addr=0, error_code=0, lookups=NO_LOOKUP, handled=NO_FAULT)


def kvm_arch_vcpu_pre_fault_memory(vcpu: Vcpu, request: PreFault) -> PreFaulted:
    """Refuse: this kernel has no such ioctl (it came with v6.11).

    Source: Linux `arch/x86/kvm/x86.c`, kvm_arch_vcpu_ioctl() (v6.8); seen in a recording of 6.1.176.
    """
    return pre_fault_refused(-EINVAL)


def nested_svm_inject_npf_exit(info: int, error_code: int) -> int:
    """Return the EXITINFO1 (u64) that L1 sees of a nested page fault that is L1's own.

    `info`: EXITINFO1 as the CPU reported it (u64), of which L1 gets the upper half, whatever it holds.
    `error_code`: what is wrong with L1's table, by KVM's walk (32 bits).  KVM's own bit 49 is in neither.

    Source: Linux `arch/x86/kvm/svm/nested.c`, nested_svm_inject_npf_exit() (v6.8).
    """
    return info & PF_UPPER32_MASK | error_code


def nested_ept_inject_page_fault(q: int, walked: int) -> int:
    """Return the exit qualification (u64) that L1 sees of an EPT violation that is L1's own.

    `q`: the CPU's exit qualification, of which two bits about the linear address are kept.  `walked`: bits 5:0,
    what was wanted and what L1's entries allow, by KVM's walk.

    Source: Linux `arch/x86/kvm/vmx/nested.c`, nested_ept_inject_page_fault(), `arch/x86/kvm/mmu/paging_tmpl.h`,
    FNAME(walk_addr_generic) (v6.8).
    """
    return q & (EPT_VIOLATION_GVA_IS_VALID | EPT_VIOLATION_GVA_TRANSLATED) | walked
