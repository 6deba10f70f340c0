# SPDX-License-Identifier: GPL-2.0-only
"""Reserved faults: handle_mmio_page_fault() and the MMIO SPTEs it reads.

KVM marks an emulated page with an SPTE that the CPU must refuse.  Next time, the CPU reports a reserved bit
(AMD, shadow paging) or a misconfiguration (EPT), and KVM knows without a look-up: emulate.  The SPTE holds
the gfn, the access rights and the memslots' generation, so that a change of slots makes it stale.
"""

from __future__ import annotations

from kvm_pf.bits import U64_MASK
from kvm_pf.spte import (
    EPT_RSVD_1G,
    EPT_RSVD_2M,
    EPT_RSVD_SMALL,
    EPT_RSVD_TABLE,
    ept_bad_mt_xwr,
    is_rsvd_spte,
    is_shadow_present_pte,
)
from kvm_pf.state import (
    EINVAL,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    PAGE_OFFSET_MASK,
    RET_PF_EMULATE,
    RET_PF_INVALID,
    RET_PF_RETRY,
    WARN_RSVD_SPTE,
    Mmio,
    MmioCache,
    MmioFormat,
    Vcpu,
    Walk,
    gpa_to_gfn,
)

# Where the generation stands in an MMIO SPTE: 8 low and 11 high bits, 19 in all.
# Source: Linux `arch/x86/kvm/mmu/spte.h`, MMIO_SPTE_GEN_LOW_START and so on (v6.8).
MMIO_SPTE_GEN_LOW_START = 3
MMIO_SPTE_GEN_LOW_BITS = 8
MMIO_SPTE_GEN_HIGH_START = 52
MMIO_SPTE_GEN_HIGH_BITS = 11

SHADOW_NONPRESENT_OR_RSVD_MASK_LEN = 5

MMIO_EPT = 0  # EPT, no L1TF mask
MMIO_EPT_L1TF = 1  # EPT, with an L1TF mask
MMIO_NPT = 2  # nested or shadow paging, a reserved physical-address bit
MMIO_TDX = 3  # from 7.3: EPT, and the VM's MMIO value is 0

# Host physical addresses have 46 bits under EPT here, 48 under NPT.
EPT_VALUE = 0x6  # write and execute without read: a misconfiguration
EPT_MASK = 0x7
EPT_HIGH = 0xFC00000000000  # bits 51:46
EPT_LOWER_GFN_MASK = 0x3FFFFFFFF000  # bits 45:12
L1TF_MASK = 0x3E0000000000  # bits 45:41
L1TF_LOWER_GFN_MASK = 0x1FFFFFFF000  # bits 40:12
NPT_VALUE = 1 << 51 | 1
NPT_ACCESS_MASK = 0x6  # write, user
NPT_HIGH = 0xF000000000000  # bits 51:48
NPT_LOWER_GFN_MASK = 0xFFFFFFFFF000  # bits 47:12


def mmio_spte_gen_mask() -> int:
    """The generation bits that fit into an SPTE."""
    return (1 << MMIO_SPTE_GEN_LOW_BITS + MMIO_SPTE_GEN_HIGH_BITS) - 1


def generation_mmio_spte_mask(gen: int) -> int:
    """Spread the low bits of a generation over an MMIO SPTE's two fields.

    Source: Linux `arch/x86/kvm/mmu/spte.c`, generation_mmio_spte_mask() (v6.8).
    """
    low = gen & (1 << MMIO_SPTE_GEN_LOW_BITS) - 1
    high = gen >> MMIO_SPTE_GEN_LOW_BITS & (1 << MMIO_SPTE_GEN_HIGH_BITS) - 1
    return low << MMIO_SPTE_GEN_LOW_START | high << MMIO_SPTE_GEN_HIGH_START


def get_mmio_spte_generation(spte: int) -> int:
    """Read the generation back from an MMIO SPTE.

    Source: Linux `arch/x86/kvm/mmu/spte.h`, get_mmio_spte_generation() (v6.8).
    """
    low = spte >> MMIO_SPTE_GEN_LOW_START & (1 << MMIO_SPTE_GEN_LOW_BITS) - 1
    high = spte >> MMIO_SPTE_GEN_HIGH_START & (1 << MMIO_SPTE_GEN_HIGH_BITS) - 1
    return low | high << MMIO_SPTE_GEN_LOW_BITS


def make_mmio_spte(mmio: MmioFormat, gen: int, gfn: int, access: int) -> int:
    """Build the SPTE that marks `gfn` as emulated, for the slots' generation `gen`.

    Source: Linux `arch/x86/kvm/mmu/spte.c`, make_mmio_spte() (v6.8).
    """
    gpa = gfn << 12 & U64_MASK
    spte = generation_mmio_spte_mask(gen) | mmio.value | access & mmio.access_mask
    spte |= gpa | mmio.nonpresent_or_rsvd_mask
    return spte | (gpa & mmio.nonpresent_or_rsvd_mask) << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN


def get_mmio_spte_gfn(mmio: MmioFormat, spte: int) -> int:
    """Read the gfn back from an MMIO SPTE; the bits that L1TF keeps elsewhere return to their place.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, get_mmio_spte_gfn() (v6.8).
    """
    gpa = spte & mmio.lower_gfn_mask
    gpa |= spte >> SHADOW_NONPRESENT_OR_RSVD_MASK_LEN & mmio.nonpresent_or_rsvd_mask
    return gpa_to_gfn(gpa)


def is_mmio_spte(mmio: MmioFormat, spte: int) -> bool:
    """Source: Linux `arch/x86/kvm/mmu/spte.h`, is_mmio_spte() (v6.8)."""
    return spte & mmio.mask == mmio.value and mmio.caching


def get_mmio_spte(mmio: MmioFormat, walk: Walk) -> tuple[int, bool]:
    """Return the walk's lowest SPTE, and whether any SPTE on the way has a reserved bit set.

    The lowest is not checked unless it is present: an MMIO SPTE has such bits on purpose.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, get_mmio_spte() (v6.8).
    """
    if walk.leaf < 0:
        return 0, False
    spte = walk.spte1
    if walk.leaf == 2:
        spte = walk.spte2
    elif walk.leaf == 3:
        spte = walk.spte3
    elif walk.leaf == 4:
        spte = walk.spte4
    elif walk.leaf == 5:
        spte = walk.spte5
    lowest = walk.leaf
    if not is_shadow_present_pte(spte):
        lowest += 1
    reserved = (
        (walk.root >= 5) & (lowest <= 5) & is_rsvd_spte(mmio, walk.spte5, EPT_RSVD_TABLE, EPT_RSVD_TABLE)
        | (walk.root >= 4) & (lowest <= 4) & is_rsvd_spte(mmio, walk.spte4, EPT_RSVD_TABLE, EPT_RSVD_TABLE)
        | (walk.root >= 3) & (lowest <= 3) & is_rsvd_spte(mmio, walk.spte3, EPT_RSVD_SMALL, EPT_RSVD_1G)
        | (walk.root >= 2) & (lowest <= 2) & is_rsvd_spte(mmio, walk.spte2, EPT_RSVD_SMALL, EPT_RSVD_2M)
        | (lowest <= 1) & is_rsvd_spte(mmio, walk.spte1, 0, 0)
    )
    return spte, reserved


def update_in_progress(gen: int) -> bool:
    """Say whether the memslots are being changed right now.

    Source: Linux `include/linux/kvm_host.h`, KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS (v6.8).
    """
    return gen & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS != 0


def vcpu_match_mmio_gpa(cache: MmioCache, gpa: int) -> bool:
    """Source: Linux `arch/x86/kvm/x86.h`, vcpu_match_mmio_gpa() (v6.8).  Gfn 0 never matches."""
    return cache.gfn != 0 and cache.gfn == gpa_to_gfn(gpa)


def vcpu_match_mmio_gva(cache: MmioCache, gva: int) -> bool:
    """Source: Linux `arch/x86/kvm/x86.h`, vcpu_match_mmio_gva() (v6.8).  Page 0 never matches."""
    return cache.gva != 0 and cache.gva == gva & ~PAGE_OFFSET_MASK


def mmio_info_in_cache(vcpu: Vcpu, addr: int) -> bool:
    """Say whether the vCPU remembers `addr` as MMIO, under today's generation (all 64 bits of it).

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, mmio_info_in_cache() (v6.8).
    """
    if vcpu.mmu.nested or vcpu.cache.gen != vcpu.vm.gen:
        return False
    if vcpu.mmu.direct:
        return vcpu_match_mmio_gpa(vcpu.cache, addr)
    return vcpu_match_mmio_gva(vcpu.cache, addr)


def vcpu_cache_mmio_info(
    cache: MmioCache, gen: int, nested: bool, gva: int, gfn: int, access: int
) -> MmioCache:
    """Return the cache with this access remembered; unchanged while the slots are being updated.

    Source: Linux `arch/x86/kvm/x86.h`, vcpu_cache_mmio_info() (v6.8).
    """
    if update_in_progress(gen):
        return cache
    return MmioCache(gva=0 if nested else gva & ~PAGE_OFFSET_MASK, gfn=gfn, gen=gen, access=access)


def mmio_format(mmio_cfg: int, caching: bool) -> MmioFormat:
    """The MMIO SPTE formats that the tables' `mmio_cfg` numbers: MMIO_EPT, MMIO_EPT_L1TF, MMIO_NPT, MMIO_TDX.

    `caching` is enable_mmio_caching: without it KVM makes no such SPTEs.

    Source: Linux `arch/x86/kvm/mmu/spte.c`, kvm_mmu_set_ept_masks(), kvm_mmu_reset_all_pte_masks() (v6.8).
    """
    if mmio_cfg == MMIO_NPT:
        return MmioFormat(
            caching=caching,
            value=NPT_VALUE,
            mask=NPT_VALUE,
            access_mask=NPT_ACCESS_MASK,
            nonpresent_or_rsvd_mask=0,
            lower_gfn_mask=NPT_LOWER_GFN_MASK,
            rsvd_high=NPT_HIGH,
            ept=False,
            bad_mt_xwr=0,
        )
    bad = ept_bad_mt_xwr(mmio_cfg)
    if mmio_cfg == MMIO_EPT_L1TF:
        return MmioFormat(
            caching=caching,
            value=EPT_VALUE,
            mask=EPT_MASK,
            access_mask=0,
            nonpresent_or_rsvd_mask=L1TF_MASK,
            lower_gfn_mask=L1TF_LOWER_GFN_MASK,
            rsvd_high=EPT_HIGH,
            ept=True,
            bad_mt_xwr=bad,
        )
    value = 0 if mmio_cfg == MMIO_TDX else EPT_VALUE
    return MmioFormat(
        caching=caching,
        value=value,
        mask=EPT_MASK,
        access_mask=0,
        nonpresent_or_rsvd_mask=0,
        lower_gfn_mask=EPT_LOWER_GFN_MASK,
        rsvd_high=EPT_HIGH,
        ept=True,
        bad_mt_xwr=bad,
    )


def mmio_result(ret: int, warns: int, cache: MmioCache) -> Mmio:
    """A result that came about without a look at an MMIO SPTE."""
    return Mmio(
        called=True,
        ret=ret,
        warns=warns,
        checked=False,
        kvm_gen=0,
        spte_gen=0,
        traced=False,
        addr=0,
        gfn=0,
        access=0,
        cache=cache,
    )


def handle_mmio_page_fault(vcpu: Vcpu, addr: int) -> Mmio:
    """Decide what a reserved fault at `addr` (u64) is.

    RET_PF_EMULATE: MMIO, known from the cache or from the SPTE.  RET_PF_INVALID: the SPTE is stale; the
    caller goes through the full fault.  RET_PF_RETRY: no MMIO SPTE (any more).  -EINVAL: a page-table entry
    has bits that nobody should have set.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, handle_mmio_page_fault() (v6.8).
    """
    if mmio_info_in_cache(vcpu, addr):
        return mmio_result(RET_PF_EMULATE, 0, vcpu.cache)
    spte, reserved = get_mmio_spte(vcpu.mmio_format, vcpu.walk)
    if reserved:
        return mmio_result(-EINVAL, WARN_RSVD_SPTE, vcpu.cache)
    if not is_mmio_spte(vcpu.mmio_format, spte):
        return mmio_result(RET_PF_RETRY, 0, vcpu.cache)
    gen = vcpu.vm.gen
    if update_in_progress(gen):
        return mmio_result(RET_PF_INVALID, 0, vcpu.cache)
    kvm_gen = gen & mmio_spte_gen_mask()
    spte_gen = get_mmio_spte_generation(spte)
    if kvm_gen != spte_gen:
        return Mmio(
            called=True,
            ret=RET_PF_INVALID,
            warns=0,
            checked=True,
            kvm_gen=kvm_gen,
            spte_gen=spte_gen,
            traced=False,
            addr=0,
            gfn=0,
            access=0,
            cache=vcpu.cache,
        )
    gva = 0 if vcpu.mmu.direct else addr
    gfn = get_mmio_spte_gfn(vcpu.mmio_format, spte)
    access = spte & vcpu.mmio_format.access_mask
    cache = vcpu_cache_mmio_info(vcpu.cache, gen, vcpu.mmu.nested, gva, gfn, access)
    return Mmio(
        called=True,
        ret=RET_PF_EMULATE,
        warns=0,
        checked=True,
        kvm_gen=kvm_gen,
        spte_gen=spte_gen,
        traced=True,
        addr=gva,
        gfn=gfn,
        access=access,
        cache=cache,
    )
