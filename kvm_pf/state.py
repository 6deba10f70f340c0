# SPDX-License-Identifier: GPL-2.0-only
"""What a fault meets and what it leaves: plain records, and the kernel's numbers.

Every record is a NamedTuple of integers, booleans and other such records, so that the functions that use
them can be run, compiled and proved as they stand.  Integers named u64 below are unsigned 64-bit values.
"""

from __future__ import annotations

from typing import NamedTuple

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_OFFSET_MASK = PAGE_SIZE - 1
GFN_MASK = (1 << 64 - PAGE_SHIFT) - 1
"""A gfn is an address without its low 12 bits: 52 bits are left."""

# Results of the fault handlers.  Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, blob 1fab1f2359b5.
RET_PF_CONTINUE = 0
RET_PF_RETRY = 1
RET_PF_EMULATE = 2
RET_PF_INVALID = 3
RET_PF_FIXED = 4
RET_PF_SPURIOUS = 5

RESUME_GUEST = 1

EINTR, EIO, EAGAIN, EFAULT, EINVAL = 4, 5, 11, 14, 22
ENOENT, EHWPOISON = 2, 133

# How to emulate.  Source: Linux `arch/x86/include/asm/kvm_host.h`, blob 1e69743ef0fb.
EMULTYPE_ALLOW_RETRY_PF = 1 << 3
EMULTYPE_PF = 1 << 6
EMULTYPE_WRITE_PF_TO_SP = 1 << 8

# Kinds of VM.  Source: Linux `arch/x86/include/uapi/asm/kvm.h`.
KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1
KVM_X86_SEV_VM = 2
KVM_X86_SEV_ES_VM = 3
KVM_X86_SNP_VM = 4
KVM_X86_TDX_VM = 5

# User-space interface.  Source: Linux `include/uapi/linux/kvm.h`.
KVM_EXIT_MEMORY_FAULT = 39
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3

PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G = 1, 2, 3
KVM_MAX_HUGEPAGE_LEVEL = PG_LEVEL_1G

KVM_PFN_ERR_FAULT = 0x7FF0000000000000
KVM_HVA_ERR_BAD = 0xFFFF888000000000
"""PAGE_OFFSET without KASLR."""
KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 1 << 63

# The warnings, as bits in the order in which one fault can fire them.
WARN_IMPLICIT = 1 << 0
WARN_SYNTHETIC = 1 << 1
WARN_BAD_ROOT = 1 << 2
WARN_PRIVATE_RSVD = 1 << 3
WARN_RSVD_SPTE = 1 << 4
WARN_KVM_BUG = 1 << 5
WARN_WP_MMIO_HIT = 1 << 6
WARN_RET_CONTINUE = 1 << 7

WARN_NAMES = (
    "implicit", "synthetic", "bad_root", "private_rsvd", "rsvd_spte", "kvm_bug", "wp_mmio_hit", "ret_continue",
)  # fmt: skip
"""Names of the WARN_* bits, lowest first, as in the kernel vectors' `warns` column."""


class Mmu(NamedTuple):
    """The vCPU's current MMU, as far as a fault looks at it."""

    root_valid: bool  # mmu->root.hpa is not all ones
    direct: bool  # root_role.direct: the address is a GPA, no guest tables to walk
    is_tdp: bool  # mmu->page_fault is kvm_tdp_page_fault
    guest_mode: bool  # the vCPU runs an L2 guest
    nested: bool  # mmu_is_nested(): L2 with nested TDP


class Vm(NamedTuple):
    """The virtual machine and how its kernel was built."""

    cfg_sw_protected: bool  # CONFIG_KVM_SW_PROTECTED_VM
    cfg_private_mem: bool  # CONFIG_KVM_PRIVATE_MEM (and with it GENERIC_MEMORY_ATTRIBUTES)
    vm_type: int  # KVM_X86_*_VM
    attrs: int  # memory attributes of the page that the fault's address names, u64
    nx_huge_pages: bool  # module parameter
    disable_nx_huge_pages: bool  # kvm->arch.disable_nx_huge_pages
    direct_bits: int  # kvm->arch.gfn_direct_bits: the gfn bit that says "shared" (TDX), else 0
    gen: int  # memslots generation, u64; bit 63: an update is in progress


class MmioFormat(NamedTuple):
    """How this host encodes an MMIO SPTE, and which bits of an SPTE its CPU reserves."""

    caching: bool  # enable_mmio_caching
    value: int  # shadow_mmio_value
    mask: int  # shadow_mmio_mask
    access_mask: int  # shadow_mmio_access_mask
    nonpresent_or_rsvd_mask: int  # L1TF: bits that are always set, the gpa's own 5 bits higher
    lower_gfn_mask: int  # shadow_nonpresent_or_rsvd_lower_gfn_mask
    rsvd_high: int  # physical-address bits that must be clear in every SPTE
    ept: bool  # EPT format: more reserved bits by level
    bad_mt_xwr: int  # EPT: one bit for each illegal value of SPTE bits 5:0


class Walk(NamedTuple):
    """The walk of the shadow (or TDP) page table for the fault's address: SPTEs root … leaf."""

    root: int  # level of the root, 4 or 5
    leaf: int  # level of the lowest SPTE seen; -1: none
    spte5: int
    spte4: int
    spte3: int
    spte2: int
    spte1: int


class MmioCache(NamedTuple):
    """The vCPU's memory of its last MMIO access (vcpu->arch.mmio_gva and so on)."""

    gva: int
    gfn: int
    gen: int
    access: int


class Environment(NamedTuple):
    """What functions outside the fault path answer, should they be asked."""

    memslot: bool  # kvm_vcpu_gfn_to_memslot() finds one
    pf_ret: int  # the page-fault handler's result: RET_PF_* or a negative errno
    pf_wpf: bool  # it found a write to a page table that it shadows
    emu_ret: int  # x86_emulate_instruction()'s result
    retry_match: bool  # same RIP and address as at the last unprotect (from 6.12)
    reinject: bool  # an event waits to be reinjected (from 6.12)
    unprot_ret: bool  # unprotecting the page succeeded (from 6.12)


class Vcpu(NamedTuple):
    """Everything that kvm_mmu_page_fault() can see besides its arguments."""

    mmu: Mmu
    vm: Vm
    mmio_format: MmioFormat
    walk: Walk
    cache: MmioCache
    environment: Environment


class Lookups(NamedTuple):
    """Memory-attribute look-ups made: how many, and the gfn of the first."""

    count: int  # type: ignore[assignment]  # hides tuple.count(), which nobody needs here
    gfn: int


NO_LOOKUP = Lookups(0, 0)


class Fault(NamedTuple):
    """struct kvm_page_fault, as the handler finds it."""

    addr: int  # u64
    error_code: int  # u64
    prefetch: bool
    exec: bool
    write: bool
    present: bool
    rsvd: bool
    user: bool
    is_tdp: bool
    is_private: bool
    nx_huge_page_workaround_enabled: bool
    huge_page_disallowed: bool
    max_level: int  # u8
    req_level: int  # u8
    goal_level: int  # u8
    gfn: int  # u64
    slot: bool  # found or not
    mmu_seq: int  # unsigned long
    pfn: int  # u64
    hva: int  # unsigned long; gone in 7.3
    refcounted_page: bool  # pointer set or not; from 7.3
    map_writable: bool
    write_fault_to_shadow_pgtable: bool


class MemoryFault(NamedTuple):
    """A memory-fault exit prepared for user space; `exit_reason` 0: none."""

    exit_reason: int
    gpa: int
    size: int
    flags: int


NO_MEMORY_FAULT = MemoryFault(exit_reason=0, gpa=0, size=0, flags=0)


class Stats(NamedTuple):
    """Increments of the vCPU's statistics."""

    taken: int
    fixed: int
    emulate: int
    spurious: int


NO_STATS = Stats(taken=0, fixed=0, emulate=0, spurious=0)


class Mmio(NamedTuple):
    """What handle_mmio_page_fault() returned, traced and left in the cache."""

    called: bool
    ret: int
    warns: int
    checked: bool  # check_mmio_spte's tracepoint fired
    kvm_gen: int
    spte_gen: int
    traced: bool  # handle_mmio_page_fault's tracepoint fired
    addr: int
    gfn: int
    access: int
    cache: MmioCache


class Handled(NamedTuple):
    """What kvm_mmu_do_page_fault() did."""

    called: bool
    ret: int
    fault: Fault
    emulation_type: int  # bits that it adds
    lookups: Lookups
    pr_warn: bool  # printed "unexpected emulation request on private memory"
    exit: MemoryFault
    stats: Stats


class Unprotect(NamedTuple):
    """A call that lifts the write protection of a guest page table."""

    called: bool
    arg: int  # a gfn up to 6.10, an address from 6.12


NO_UNPROTECT = Unprotect(False, 0)


class Emulation(NamedTuple):
    """A call of x86_emulate_instruction()."""

    called: bool
    emulation_type: int
    addr: int
    insn_len: int


NO_EMULATION = Emulation(called=False, emulation_type=0, addr=0, insn_len=0)


class Outcome(NamedTuple):
    """Everything that kvm_mmu_page_fault() returned, called and changed."""

    ret: int  # negative: error to user space; 0: exit to user space; positive: resume the guest
    warns: int  # WARN_* bits
    vm_bugged: bool
    mmio: Mmio
    handled: Handled
    lookups: Lookups
    unprotect: Unprotect
    emulation: Emulation
    stats: Stats


def gpa_to_gfn(gpa: int) -> int:
    """The frame number of an address: u64 → 52 bits.

    Source: Linux `include/linux/kvm_host.h`, gpa_to_gfn().  The mask changes nothing for an unsigned value;
    it keeps the shift logical where a compiled or symbolic value is signed.
    """
    return gpa >> PAGE_SHIFT & GFN_MASK


def select(bit: int, yes: int, no: int) -> int:
    """`yes` if `bit` is 1, `no` if it is 0, without a branch (so that a proof does not fork here)."""
    return (yes & -bit) | (no & (bit - 1))
