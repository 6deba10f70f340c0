# SPDX-License-Identifier: GPL-2.0-only
"""The posted patch without its prerequisite: the error code is cut to 32 bits on its way to the handler."""

from __future__ import annotations

U32_MASK = (1 << 32) - 1


def handler_error_code(error_code: int) -> int:
    """The part of the error code that kvm_mmu_do_page_fault() gets: the low 32 bits.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault() (v6.9).
    """
    return error_code & U32_MASK
