# SPDX-License-Identifier: GPL-2.0-only
"""Memory attributes: what user space last declared about a page.

The path asks about one page; `kvm_pf.guest.attribute_store` keeps a whole guest's.
"""

from __future__ import annotations

from kvm_pf.state import (
    EINVAL,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    NO_LOOKUP,
    PAGE_OFFSET_MASK,
    Lookups,
    Vm,
)


def kvm_mem_is_private(vm: Vm, gfn: int) -> tuple[bool, Lookups]:
    """Say whether user space declared `gfn` private, and count the look-up.

    A kernel built without memory attributes answers False without looking.

    Source: Linux `include/linux/kvm_host.h`, kvm_mem_is_private() (v6.8).
    """
    if not vm.cfg_private_mem:
        return False, NO_LOOKUP
    return vm.attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0, Lookups(1, gfn)


def kvm_supported_mem_attributes(has_private_mem: bool) -> int:
    """Return the attributes that user space may set.

    Source: Linux `virt/kvm/kvm_main.c`, kvm_supported_mem_attributes() (v6.8).
    """
    return KVM_MEMORY_ATTRIBUTE_PRIVATE if has_private_mem else 0


def sum_wraps(a: int, b: int) -> bool:
    """Say whether the sum of two u64 values does not fit into 64 bits."""
    return (a & b | (a | b) & ~(a + b)) >> 63 & 1 != 0


def kvm_vm_ioctl_set_mem_attributes(
    address: int, size: int, attributes: int, flags: int, has_private_mem: bool
) -> int:
    """Check the arguments (u64) of KVM_SET_MEMORY_ATTRIBUTES: 0, or -EINVAL.

    The last page of the address space cannot be set: the range's end would be 2^64.

    Source: Linux `virt/kvm/kvm_main.c`, kvm_vm_ioctl_set_mem_attributes() (v6.8).
    """
    if flags != 0:
        return -EINVAL
    if attributes & ~kvm_supported_mem_attributes(has_private_mem) != 0:
        return -EINVAL
    if size == 0 or sum_wraps(address, size):
        return -EINVAL
    if (address | size) & PAGE_OFFSET_MASK != 0:
        return -EINVAL
    return 0
