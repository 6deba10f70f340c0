# SPDX-License-Identifier: GPL-2.0-only
"""Linux 7.3 (stable, 7.3.4): TDX, mode-based execute control, and the handler's own result handed up.

Where something is said to be so "from 7.3" on, 7.3 is the first of these revisions that has it; which release between
6.12 and 7.3 brought it was not looked up.

The handler picks a trust domain's page table, private or shared, by the address, not by is_private: two sources
that must agree, as both exit handlers and pre-faulting see to (`arch/x86/kvm/mmu/tdp_mmu.h`,
tdp_mmu_get_root_for_fault(), Linux 7.3.4).
"""

from __future__ import annotations

from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_GVA_USER,
    EPT_VIOLATION_PROT_MASK,
    EPT_VIOLATION_RWX_MASK,
    EPT_VIOLATION_USER_EXEC,
    PFERR_FETCH_MASK,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_SS_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    U64_MASK,
)
from kvm_pf.exits import (
    BREAK_EVENTS,
    BREAK_SLOT_INVALID,
    BREAK_VM_DEAD,
    MMIO_FAST,
    MMIO_RESUME,
    MMIO_TO_MMU,
    NO_MMU_CALL,
    NO_RMP_FAULT,
    NO_TRACE,
    WARN_SOURCE_BUG,
    Event,
    Guest,
    Retry,
    SourceOutcome,
    Trace,
    came_true,
    mmu_answer,
    signal_pending,
    vmx_handle_ept_violation,
    vt_is_tdx_private_gpa,
    with_mmu,
)
from kvm_pf.faultin import (
    GUP_INTERRUPTIBLE,
    GUP_NOWAIT,
    GUP_OK,
    GUP_SECOND_SHIFT,
    GUP_WRITE,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_GMEM_ONLY,
    KVM_PFN_ERR_MASK,
    KVM_PFN_ERR_RO_FAULT,
    NO_CALLS,
    Calls,
    Faultin,
    Found,
    Memory,
    Slot,
    begin,
    kvm_max_level_for_order,
    outside_answers_pfn,
    with_result,
)
from kvm_pf.mmio import MMIO_EPT_L1TF
from kvm_pf.permission import PFEC_MASK
from kvm_pf.revisions.v6_10 import kvm_faultin_pfn as kvm_faultin_pfn_6_10
from kvm_pf.spte import EPT_BAD_MEMTYPE, EPT_BAD_W, EPT_BAD_WX, EPT_BAD_X, EPT_MT_XWR_MASK
from kvm_pf.state import (
    EAGAIN,
    EFAULT,
    EINTR,
    EIO,
    PAGE_SHIFT,
    RET_PF_CONTINUE,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    WARN_KVM_BUG,
    WARN_RET_CONTINUE,
    Fault,
    Vcpu,
    Vm,
    gpa_to_gfn,
)

# Source: Linux `arch/x86/kvm/mmu/spte.h`, Linux 7.3.4: SPTE bit 10 is EPT's user-execute now.
MMIO_SPTE_GEN_LOW_BITS = 7
INITIAL_HVA = 0
SPTE_USER_EXEC_SHIFT = 10
SPTE_EXEC_SHIFT = 2

# Source: Linux `arch/x86/kvm/mmu/spte.h`, commit `d482bb509b7d`, read in a translation; in recordings of 7.3.4,
# writable entries have bits 53 and 55.
EPT_SPTE_MMU_WRITABLE = 1 << 55
SHADOW_ACC_TRACK_SAVED_BITS_MASK = 0x405  # read, execute, and execute as user
SHADOW_ACC_TRACK_SAVED_BITS_SHIFT = 52


def mt_xwr(spte: int) -> int:
    """The memory type and permissions of an EPT entry; user-execute counts as execute.

    Source: Linux `arch/x86/kvm/mmu/spte.h`, Linux 7.3.4, is_rsvd_spte().
    """
    return (spte | (spte >> SPTE_USER_EXEC_SHIFT & 1) << SPTE_EXEC_SHIFT) & EPT_MT_XWR_MASK


def fault_gfn(vm: Vm, addr: int) -> int:
    """The gfn of a direct fault, without TDX's shared bit.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_mmu_do_page_fault().
    """
    return gpa_to_gfn(addr) & ~vm.direct_bits


def resumed(r: int) -> tuple[int, int]:
    """What kvm_mmu_page_fault() returns for a fault that is done: the result itself, and CONTINUE is a surprise.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_mmu_page_fault().
    """
    return r, WARN_RET_CONTINUE if r == RET_PF_CONTINUE else 0


EPT_MASK = 1 << 63 | 0x7


def ept_bad_mt_xwr(mmio_cfg: int) -> int:
    """The illegal memory types and permissions of an EPT entry: KVM's own tables never use execute-only.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, __reset_rsvds_bits_mask_ept().
    """
    bad = EPT_BAD_MEMTYPE | EPT_BAD_W | EPT_BAD_WX
    return bad if mmio_cfg == MMIO_EPT_L1TF else bad | EPT_BAD_X


def svm_check_emulate_instruction(guest: Guest) -> bool:
    """Say whether an instruction may be emulated: not while an event is delivered, not in an SEV-ES guest.

    Source: Linux `arch/x86/kvm/svm/svm.c`, Linux 7.3.4, svm_check_emulate_instruction().
    """
    return not guest.vectoring and not guest.sev_es


def npf_mmio(guest: Guest, error_code: int) -> int:
    """Decide whether emulated MMIO goes to the MMU (MMIO_*): not if it may not be emulated or is a fast one.

    Source: Linux `arch/x86/kvm/svm/svm.c`, Linux 7.3.4, npf_interception().
    """
    if error_code & PFERR_RSVD_MASK == 0 or guest.guest_mode:
        return MMIO_TO_MMU
    if not svm_check_emulate_instruction(guest):
        return MMIO_RESUME
    if guest.nrips and guest.next_rip_known and guest.fast_mmio:
        return MMIO_FAST
    return MMIO_TO_MMU


def npf_error_code(guest: Guest, error_code: int) -> int:
    """Correct the user bit of a fetch under GMET (erratum 1218), then mark an SNP guest's encrypted access.

    Source: Linux `arch/x86/kvm/svm/svm.c`, Linux 7.3.4, npf_interception().
    """
    if guest.gmet and not guest.sev_es and error_code & PFERR_FETCH_MASK != 0:
        error_code = error_code & ~PFERR_USER_MASK | (PFERR_USER_MASK if guest.cpl == 3 else 0)
    if guest.snp and error_code & PFERR_GUEST_ENC_MASK != 0:
        error_code |= PFERR_PRIVATE_ACCESS
    return error_code


def vmx_check_emulate_instruction(guest: Guest) -> bool:
    """Say whether an instruction may be emulated: not while an event is delivered.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, Linux 7.3.4, vmx_check_emulate_instruction().
    """
    return not guest.vectoring


def ept_error_code(q: int, mbec: bool, private_gpa: bool) -> int:
    """Translate an exit qualification (u64) into an error code (u64).

    With mode-based execute control (`mbec`) EPT has a bit for user execution.  The user bit means user: the
    linear address of the final access is a user-mode one.  That the access was a read no longer shows.

    Source: Linux `arch/x86/kvm/vmx/common.h`, Linux 7.3.4, __vmx_handle_ept_violation().
    """
    present = EPT_VIOLATION_RWX_MASK | (EPT_VIOLATION_USER_EXEC if mbec else 0)
    error_code = PFERR_WRITE_MASK if q & EPT_VIOLATION_ACC_WRITE != 0 else 0
    error_code |= PFERR_FETCH_MASK if q & EPT_VIOLATION_ACC_INSTR != 0 else 0
    error_code |= PFERR_PRESENT_MASK if q & present != 0 else 0
    error_code |= PFERR_PRIVATE_ACCESS if private_gpa else 0
    if q & EPT_VIOLATION_GVA_IS_VALID == 0:
        return error_code
    if q & EPT_VIOLATION_GVA_TRANSLATED == 0:
        return error_code | PFERR_GUEST_PAGE_MASK
    return error_code | PFERR_GUEST_FINAL_MASK | (PFERR_USER_MASK if q & EPT_VIOLATION_GVA_USER != 0 else 0)


def tdx_is_sept_violation_unexpected_pending(event: Event) -> bool:
    """Say whether a trust domain touched a private page that it had not accepted.

    Source: Linux `arch/x86/kvm/vmx/tdx.c`, Linux 7.3.4, tdx_is_sept_violation_unexpected_pending().
    """
    return event.tdx_pending and event.info & EPT_VIOLATION_PROT_MASK == 0


def tdx_handle_ept_violation(event: Event) -> SourceOutcome:
    """Handle an EPT violation of a trust domain.

    A private fault counts as a write, whatever it was, and is retried here, because the TDX module takes a
    guest that makes no progress for one that is being attacked.

    Source: Linux `arch/x86/kvm/vmx/tdx.c`, Linux 7.3.4, tdx_handle_ept_violation().
    """
    q = event.info
    local_retry = vt_is_tdx_private_gpa(event.guest.direct_bits, event.addr)
    if local_retry:
        if tdx_is_sept_violation_unexpected_pending(event):
            return SourceOutcome(
                ret=-EIO,
                warns=0,
                trace=NO_TRACE,
                mmu=NO_MMU_CALL,
                rmp=NO_RMP_FAULT,
                fast_mmio=False,
                unprotect_virt=False,
                apf_wait=False,
                vm_dead=True,
                vm_bugged=False,
            )
        q = EPT_VIOLATION_ACC_WRITE
    elif q & EPT_VIOLATION_ACC_INSTR != 0:
        return SourceOutcome(
            ret=-EIO,
            warns=WARN_SOURCE_BUG,
            trace=NO_TRACE,
            mmu=NO_MMU_CALL,
            rmp=NO_RMP_FAULT,
            fast_mmio=False,
            unprotect_virt=False,
            apf_wait=False,
            vm_dead=False,
            vm_bugged=True,
        )
    calls = 0
    while True:
        calls += 1
        mmu = vmx_handle_ept_violation(event, q, calls)
        ret = mmu_answer(event, calls)
        if ret != RET_PF_RETRY or not local_retry:
            break
        if came_true(event.retry, BREAK_EVENTS, calls) or signal_pending(event.retry, calls):
            break
        if came_true(event.retry, BREAK_VM_DEAD, calls):
            ret = -EIO
            break
        if came_true(event.retry, BREAK_SLOT_INVALID, calls):
            break
    return with_mmu(ret, 0, Trace(called=True, addr=event.addr, error_code=q), mmu, NO_RMP_FAULT)


def pre_fault_stopped(retry: Retry, calls: int) -> int:
    """Say what ends pre-faulting before its next call: a negative errno, or 0.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_tdp_map_page().
    """
    if signal_pending(retry, calls):
        return -EINTR
    return -EIO if came_true(retry, BREAK_VM_DEAD, calls) else 0


def pre_fault_gpa(vm: Vm, gpa: int, private: bool) -> int:
    """Choose the address (u64) to hand on: with TDX's shared bit, unless the page is private.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_arch_vcpu_pre_fault_memory().
    """
    return gpa if private else gpa | vm.direct_bits << PAGE_SHIFT & U64_MASK


def is_gfn_alias(vm: Vm, gfn: int) -> bool:
    """Say whether `gfn` is another name of a page: it has TDX's shared bit.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, Linux 7.3.4, kvm_is_gfn_alias().
    """
    return gfn & vm.direct_bits != 0


FAULT_HAS_PAGE = 1
ACC_ALL = 15
KVM_PFN_ERR_NEEDS_IO = KVM_PFN_ERR_MASK + 4


def deleted_slot(prefetch: bool) -> int:
    """Answer a fault on a slot that is being deleted or moved: try again; a prefetch ends.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_mmu_faultin_pfn().
    """
    return -EAGAIN if prefetch else RET_PF_RETRY


def from_gmem(fault: Fault, slot: Slot) -> bool:
    """Say whether the page comes from guest_memfd: if the fault is private, or the slot has nothing else.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, __kvm_mmu_faultin_pfn().
    """
    return fault.is_private or slot.flags & KVM_MEMSLOT_GMEM_ONLY != 0


def kvm_max_private_mapping_level(memory: Memory, max_level: int) -> int:
    """Return the level for a page of guest_memfd: the page's own; the rest is asked later.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_mmu_faultin_pfn_gmem().
    """
    return kvm_max_level_for_order(memory.gmem_order)


def outside_answers_lookup(memory: Memory, found: Found, may_wait: bool) -> tuple[Found, bool]:
    """Answer for hva_to_pfn(): pfn, page and map_writable, and whether the page must be read first.

    `memory` says what the host has.

    Source: Linux `virt/kvm/kvm_main.c`, Linux 7.3.4, hva_to_pfn().
    """
    needs_io = memory.gup_async and not may_wait
    got_it = memory.gup_result == GUP_OK and not needs_io
    pfn = KVM_PFN_ERR_NEEDS_IO if needs_io else outside_answers_pfn(memory.gup_result, memory.host_pfn)
    writable = got_it and memory.slot.flags & KVM_MEM_READONLY == 0
    return Found(
        slot=found.slot,
        mmu_seq=found.mmu_seq,
        pfn=pfn,
        hva=found.hva,
        refcounted_page=got_it,
        map_writable=writable,
        max_level=found.max_level,
    ), needs_io


def gfn_to_pfn(fault: Fault, memory: Memory, before: Faultin, may_wait: bool) -> tuple[Faultin, bool]:
    """Look the frame up in the host's page tables; a write to a read-only slot does not get there.

    Source: Linux `virt/kvm/kvm_main.c`, Linux 7.3.4, __kvm_faultin_pfn(), kvm_follow_pfn().
    """
    seen = before.found
    if fault.write and memory.slot.flags & KVM_MEM_READONLY != 0:
        found = Found(
            slot=seen.slot,
            mmu_seq=seen.mmu_seq,
            pfn=KVM_PFN_ERR_RO_FAULT,
            hva=seen.hva,
            refcounted_page=False,
            map_writable=False,
            max_level=seen.max_level,
        )
        return with_result(before, RET_PF_CONTINUE, found, NO_CALLS), False
    found, needs_io = outside_answers_lookup(memory, seen, may_wait)
    how = (GUP_WRITE if fault.write else 0) | (GUP_INTERRUPTIBLE if may_wait else GUP_NOWAIT)
    calls = Calls(
        gmem=0,
        gup=1,
        gup_flags=how << GUP_SECOND_SHIFT * before.calls.gup,
        apf_setup=0,
        apf_halt=0,
        released=0,
        signal_exit=0,
        hwpoison_signal=0,
    )
    return with_result(before, RET_PF_CONTINUE, found, calls), needs_io


def kvm_faultin_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory) -> Faultin:
    """Find the frame behind a filled fault: kvm_mmu_faultin_pfn(), as 6.10 after one test for TDX.

    A shared bit left in the gfn is a bug in KVM, and the end of the VM.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 7.3.4, kvm_mmu_faultin_pfn().
    """
    if is_gfn_alias(vcpu.vm, fault.gfn):
        start = begin(vcpu, fault, fault.mmu_seq)
        return Faultin(
            ret=-EFAULT,
            exit=start.exit,
            found=start.found,
            calls=start.calls,
            lookups=start.lookups,
            cache=start.cache,
            warns=WARN_KVM_BUG,
            vm_bugged=True,
        )
    return kvm_faultin_pfn_6_10(vcpu, fault, access, memory)


def permission_pfec(access: int) -> tuple[int, bool]:
    """Keep only the four bits that a permission can depend on; say whether another was there.

    The shadow-stack bit goes without a word.

    Source: Linux `arch/x86/kvm/mmu.h`, Linux 7.3.4, permission_fault().
    """
    known = PFERR_PRESENT_MASK | PFERR_WRITE_MASK | PFERR_USER_MASK | PFERR_FETCH_MASK
    return access & known, access & PFEC_MASK & ~(known | PFERR_SS_MASK) != 0


def present_leaf(prefetch: bool, accessed: bool) -> int:
    """The result of mapping a page over an entry that allows the access already: nothing is built.

    Source: Linux `arch/x86/kvm/mmu/tdp_mmu.c`, Linux 7.3.4, tdp_mmu_map_handle_target_level().
    """
    return RET_PF_SPURIOUS


def nested_svm_inject_npf_exit(info: int, error_code: int) -> int:
    """Return the EXITINFO1 that L1 sees: of the upper half only the stage of the walk, bits 32 and 33.

    With neither or both of them KVM warns and says "final address".

    Source: Linux `arch/x86/kvm/svm/nested.c`, Linux 7.3.4, nested_svm_inject_npf_exit().
    """
    stage = info & (PFERR_GUEST_FINAL_MASK | PFERR_GUEST_PAGE_MASK)
    if stage != PFERR_GUEST_PAGE_MASK:
        stage = PFERR_GUEST_FINAL_MASK
    return stage | error_code
