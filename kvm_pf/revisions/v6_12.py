# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.12 (stable, 6.12.117): write-protection faults have a result of their own, and counting moved.

On Intel an earlier 6.12.y differs: see `ept_error_code`.
"""

from __future__ import annotations

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_MASK,
    PFERR_FETCH_MASK,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_GUEST_RMP_MASK,
    PFERR_NESTED_GUEST_PAGE,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from kvm_pf.exits import (
    NO_RMP_FAULT,
    WARN_PREFAULT,
    Guest,
    PreFault,
    PreFaulted,
    Retry,
    RmpFault,
    pre_fault_refused,
    signal_pending,
)
from kvm_pf.fault import NO_FAULT, After, emulate, kvm_mmu_do_page_fault
from kvm_pf.faultin import Memory, kvm_max_level_for_order
from kvm_pf.mmio import mmio_info_in_cache
from kvm_pf.revisions.guest_enc_gated import kvm_arch_has_private_mem
from kvm_pf.state import (
    EINTR,
    EINVAL,
    EIO,
    EMULTYPE_ALLOW_RETRY_PF,
    ENOENT,
    KVM_X86_DEFAULT_VM,
    NO_EMULATION,
    NO_LOOKUP,
    NO_STATS,
    NO_UNPROTECT,
    PAGE_SHIFT,
    RESUME_GUEST,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    WARN_WP_MMIO_HIT,
    Fault,
    Handled,
    Lookups,
    Stats,
    Unprotect,
    Vcpu,
    Vm,
    gpa_to_gfn,
)

# Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, Linux 6.12.117.
RET_PF_WRITE_PROTECTED = 3
RET_PF_INVALID = 4
RET_PF_FIXED = 5
RET_PF_SPURIOUS = 6


def count_handled(r: int, prefetch: bool) -> Stats:
    """What is counted around the handler: that a fault was taken; its result is counted at the end.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_mmu_page_fault().
    """
    return Stats(taken=0 if prefetch else 1, fixed=0, emulate=0, spurious=0)


def count_result(r: int) -> Stats:
    """What kvm_mmu_page_fault() counts at the end.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_mmu_page_fault().
    """
    if r == RET_PF_FIXED:
        return Stats(taken=0, fixed=1, emulate=0, spurious=0)
    if r == RET_PF_EMULATE:
        return Stats(taken=0, fixed=0, emulate=1, spurious=0)
    if r == RET_PF_SPURIOUS:
        return Stats(taken=0, fixed=0, emulate=0, spurious=1)
    return NO_STATS


def is_write_to_guest_page_table(error_code: int) -> bool:
    """Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, is_write_to_guest_page_table()."""
    return error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE


def kvm_mmu_write_protect_fault(
    vcpu: Vcpu, cr2_or_gpa: int, error_code: int, emulation_type: int
) -> tuple[int, int, int, Unprotect]:
    """Decide about a write to a page table that KVM shadows: (result, emulation type, warnings, unprotect).

    The same instruction at the same address again means that unprotecting did not help: emulate.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_mmu_write_protect_fault().
    """
    if vcpu.environment.retry_match:
        return RET_PF_EMULATE, emulation_type, 0, NO_UNPROTECT
    if mmio_info_in_cache(vcpu, cr2_or_gpa):
        return RET_PF_EMULATE, emulation_type, WARN_WP_MMIO_HIT, NO_UNPROTECT
    worth_it = is_write_to_guest_page_table(error_code) if vcpu.mmu.direct else vcpu.environment.reinject
    unprotect = Unprotect(True, cr2_or_gpa) if worth_it else NO_UNPROTECT
    if worth_it and vcpu.environment.unprot_ret:
        return RET_PF_RETRY, emulation_type, 0, unprotect
    if not vcpu.mmu.guest_mode:
        emulation_type |= EMULTYPE_ALLOW_RETRY_PF
    return RET_PF_EMULATE, emulation_type, 0, unprotect


def resumed(r: int) -> tuple[int, int]:
    """What kvm_mmu_page_fault() returns for a fault that is done: (value, warnings).

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_mmu_page_fault().
    """
    return RESUME_GUEST, 0


def after_fault(
    vcpu: Vcpu, cr2_or_gpa: int, error_code: int, r: int, emulation_type: int, insn_len: int
) -> After:
    """Turn the handler's answer into kvm_mmu_page_fault()'s: resume, or emulate.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_mmu_page_fault().
    """
    if r < 0:
        return After(ret=r, warns=0, unprotect=NO_UNPROTECT, emulation=NO_EMULATION, stats=NO_STATS)
    warns = 0
    unprotect = NO_UNPROTECT
    if r == RET_PF_WRITE_PROTECTED:
        r, emulation_type, warns, unprotect = kvm_mmu_write_protect_fault(
            vcpu, cr2_or_gpa, error_code, emulation_type
        )
    if r != RET_PF_EMULATE:
        ret, surprise = resumed(r)
        return After(
            ret=ret,
            warns=warns | surprise,
            unprotect=unprotect,
            emulation=NO_EMULATION,
            stats=count_result(r),
        )
    emulation = emulate(vcpu, cr2_or_gpa, emulation_type, insn_len)
    return After(
        ret=vcpu.environment.emu_ret,
        warns=warns,
        unprotect=unprotect,
        emulation=emulation,
        stats=count_result(r),
    )


def npf_error_code(guest: Guest, error_code: int) -> int:
    """Mark an SNP guest's encrypted access private: for it, encrypted is private.

    Source: Linux `arch/x86/kvm/svm/svm.c`, Linux 6.12.117, npf_interception().
    """
    if guest.snp and error_code & PFERR_GUEST_ENC_MASK != 0:
        error_code |= PFERR_PRIVATE_ACCESS
    return error_code


def npf_rmp_fault(error_code: int, ret: int) -> RmpFault:
    """Handle a conflict with the RMP, after the MMU, and only if the guest is to be resumed.

    The bit decides, not the kind of VM.

    Source: Linux `arch/x86/kvm/svm/svm.c`, Linux 6.12.117, npf_interception().
    """
    if ret > 0 and error_code & PFERR_GUEST_RMP_MASK != 0:
        return RmpFault(True, error_code)
    return NO_RMP_FAULT


def ept_error_code(q: int, mbec: bool, private_gpa: bool) -> int:
    """Translate an exit qualification (u64) into an error code (u64).

    Without a valid linear address, it is neither the final access nor one of the guest's page tables.

    Linux 6.12 looked for the valid address in the error code instead of the qualification, where bit 7 is never
    set: GUEST_FINAL and GUEST_PAGE never were either, and 0x782 became 0x2.  Stable kernels, 6.12.117 among them,
    have the correction.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, commit `f3009482512e` ("KVM: VMX: Set PFERR_GUEST_{FINAL,PAGE}_MASK
    if and only if the GVA is valid") (v6.12); Linux `arch/x86/kvm/vmx/common.h`, commit `d0164c161923` ("KVM:
    VMX: Fix check for valid GVA on an EPT violation") (v6.18), as in Linux 6.12.117,
    __vmx_handle_ept_violation().
    """
    error_code = PFERR_USER_MASK if q & EPT_VIOLATION_ACC_READ != 0 else 0
    error_code |= PFERR_WRITE_MASK if q & EPT_VIOLATION_ACC_WRITE != 0 else 0
    error_code |= PFERR_FETCH_MASK if q & EPT_VIOLATION_ACC_INSTR != 0 else 0
    error_code |= PFERR_PRESENT_MASK if q & EPT_VIOLATION_RWX_MASK != 0 else 0
    if q & EPT_VIOLATION_GVA_IS_VALID == 0:
        return error_code
    return error_code | (
        PFERR_GUEST_FINAL_MASK if q & EPT_VIOLATION_GVA_TRANSLATED != 0 else PFERR_GUEST_PAGE_MASK
    )


def fast_path_compares(vm: Vm, fault: Fault) -> tuple[bool, Lookups]:
    """Say whether the fast path refuses a fault: if the VM has private memory and user space sees the page otherwise.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commit `b74d002d3d58` ("KVM: MMU: Disable fast path if
    KVM_EXIT_MEMORY_FAULT is needed") (v6.11), page_fault_can_be_fast().
    """
    if not kvm_arch_has_private_mem(vm):
        return False, NO_LOOKUP
    private, lookups = kvm_mem_is_private(vm, fault.gfn)
    return fault.is_private != private, lookups


def kvm_memslot_flush_zap_all(vm: Vm, quirk: bool) -> bool:
    """Say whether a slot that is deleted takes all entries with it: of an ordinary VM, unless the quirk is off.

    Of any other VM only the entries that map the slot's own range go.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commit `aa8d1f48d353` ("KVM: x86/mmu: Introduce a quirk to control
    memslot zap behavior") (v6.12), as in Linux 6.12.117, kvm_arch_flush_shadow_memslot().
    """
    return vm.vm_type == KVM_X86_DEFAULT_VM and quirk


def unprotects_virt(guest: Guest) -> bool:
    """Say whether the page is unprotected first: not any more, the write-protection fault sees to it.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_handle_page_fault().
    """
    return False


def count_page_ready(r: int) -> Stats:
    """Count what the fault path answered (`r`): a fixed fault.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_arch_async_page_ready().
    """
    return Stats(taken=0, fixed=1, emulate=0, spurious=0) if r == RET_PF_FIXED else NO_STATS


EOPNOTSUPP = 95
PT64_LEVEL_BITS = 9


def pre_fault_stopped(retry: Retry, calls: int) -> int:
    """Say what ends pre-faulting before its next call: a negative errno, or 0.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_tdp_map_page().
    """
    return -EINTR if signal_pending(retry, calls) else 0


def pre_fault_result(r: int) -> tuple[int, int]:
    """Turn the fault path's answer into kvm_tdp_map_page()'s: (0 or a negative errno, warnings).

    Emulated MMIO has no page to map: -ENOENT.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_tdp_map_page().
    """
    if r < 0:
        return r, 0
    if r in (RET_PF_FIXED, RET_PF_SPURIOUS, RET_PF_WRITE_PROTECTED):
        return 0, 0
    if r == RET_PF_EMULATE:
        return -ENOENT, 0
    return -EIO, WARN_PREFAULT


def kvm_tdp_map_page(vcpu: Vcpu, gpa: int, error_code: int, retry: Retry) -> tuple[int, int, int, Handled]:
    """Call the fault path until it says something else than RETRY.

    Returns 0 or a negative errno, the warnings, the number of calls, and the last call.

    Two-dimensional paging only: shadow paging would take the address for a virtual one.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_tdp_map_page().
    """
    if not vcpu.mmu.is_tdp:
        return -EOPNOTSUPP, 0, 0, NO_FAULT
    calls = 0
    r = RET_PF_RETRY
    handled = NO_FAULT
    while r == RET_PF_RETRY:
        stopped = pre_fault_stopped(retry, calls)
        if stopped != 0:
            return stopped, 0, calls, handled
        handled = kvm_mmu_do_page_fault(vcpu, gpa, error_code, True)
        calls += 1
        r = RET_PF_RETRY if calls <= retry.retries else handled.ret
    ret, warns = pre_fault_result(r)
    return ret, warns, calls, handled


def pre_fault_gpa(vm: Vm, gpa: int, private: bool) -> int:
    """Choose the address (u64) to hand on: the one asked for.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_arch_vcpu_pre_fault_memory().
    """
    return gpa


def is_gfn_alias(vm: Vm, gfn: int) -> bool:
    """Say whether `gfn` is another name of a page: there are none yet.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_arch_vcpu_pre_fault_memory().
    """
    return False


def kvm_arch_vcpu_pre_fault_memory(vcpu: Vcpu, request: PreFault) -> PreFaulted:
    """Map the page at `request.gpa` ahead of the guest's access, as private memory if declared so.

    Returns the bytes done: up to the end of the mapping, at most what was asked for.  A fault that ends in a
    memory-fault exit gives -EFAULT, and the exit is written to vcpu->run although no KVM_RUN is under way.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_arch_vcpu_pre_fault_memory().
    """
    if not request.allowed:
        return pre_fault_refused(-EOPNOTSUPP)
    gfn = gpa_to_gfn(request.gpa)
    if is_gfn_alias(vcpu.vm, gfn):
        return pre_fault_refused(-EINVAL)
    if request.reload_ret != 0:
        return pre_fault_refused(request.reload_ret)
    private = False
    lookups = NO_LOOKUP
    if kvm_arch_has_private_mem(vcpu.vm):
        private, lookups = kvm_mem_is_private(vcpu.vm, gfn)
    error_code = PFERR_GUEST_FINAL_MASK | (PFERR_PRIVATE_ACCESS if private else 0)
    addr = pre_fault_gpa(vcpu.vm, request.gpa, private)
    ret, warns, calls, handled = kvm_tdp_map_page(vcpu, addr, error_code, request.retry)
    if ret == 0:
        page = 1 << PAGE_SHIFT + PT64_LEVEL_BITS * (request.level - 1)
        left = (~request.gpa & page - 1) + 1
        ret = request.size & page - 1 if request.size < left else left
    return PreFaulted(
        ret=ret, warns=warns, calls=calls, addr=addr, error_code=error_code, lookups=lookups, handled=handled
    )


def kvm_max_private_mapping_level(memory: Memory, max_level: int) -> int:
    """Return the level for a page of guest_memfd: the smallest of the page's, the fault's and the vendor's.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, Linux 6.12.117, kvm_max_private_mapping_level().
    """
    level = min(kvm_max_level_for_order(memory.gmem_order), max_level)
    if memory.vendor_max_level == 0:
        return level
    return min(level, memory.vendor_max_level)
