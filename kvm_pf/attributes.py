# SPDX-License-Identifier: GPL-2.0-only
"""Memory attributes: what user space last declared about a page."""

from __future__ import annotations

from kvm_pf.state import KVM_MEMORY_ATTRIBUTE_PRIVATE, NO_LOOKUP, Lookups, Vm


def kvm_mem_is_private(vm: Vm, gfn: int) -> tuple[bool, Lookups]:
    """Say whether user space declared `gfn` private, and count the look-up.

    A kernel built without memory attributes answers False without looking.

    Source: Linux `include/linux/kvm_host.h`, kvm_mem_is_private() (v6.8).
    """
    if not vm.cfg_private_mem:
        return False, NO_LOOKUP
    return vm.attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0, Lookups(1, gfn)
