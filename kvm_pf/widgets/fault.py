# SPDX-License-Identifier: GPL-2.0-only
"""The fault explorer: change a fault's state and see the path change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kvm_pf.batch import outputs
from kvm_pf.bits import describe
from kvm_pf.inputs import case_values, ret_pf_names
from kvm_pf.markup import Html, bold, changed, code, element, join, table
from kvm_pf.mmio import make_mmio_spte
from kvm_pf.revisions import REVISIONS, Revision, get
from kvm_pf.state import (
    EMULTYPE_ALLOW_RETRY_PF,
    EMULTYPE_PF,
    EMULTYPE_WRITE_PF_TO_SP,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    Outcome,
)
from kvm_pf.tables import MMIO_NPT, MODE_COLUMNS, MODES, NPT_ACCESS_MASK, VM_TYPES, mmio_format
from kvm_pf.watch import Explanation, explain, warn_names
from kvm_pf.widgets.panel import Panel, choice, ids, line, read_code, show, text_box, tick

OTHER = "as given"
"""Stands for a state that no other option of a control describes."""

MMIO = ("none", "MMIO SPTE, current", "MMIO SPTE, stale", "in the vCPU's cache", "slots being updated")
_MMIO_COLUMNS = (
    "mmio_cfg", "walk_root", "walk_leaf", "spte5", "spte4", "spte3", "spte2", "spte1", "mmio_gva", "mmio_gfn",
    "mmio_gen", "mmio_access", "gen",
)  # fmt: skip

TICKS = {
    "private": ("page is private", "user space declared the faulting page private (attribute bit 3)"),
    "cfg_sw_protected": ("CONFIG_KVM_SW_PROTECTED_VM", "the kernel knows software-protected VMs"),
    "cfg_private_mem": ("CONFIG_KVM_PRIVATE_MEM", "the kernel knows private memory"),
    "root_valid": ("root is valid", "the vCPU has a page table to fault into"),
}


def mmio_state(preset: str, revision: Revision, addr: int) -> dict[str, int]:
    """Return the input columns of a state of MMIO: what the walk for `addr` (u64) and the vCPU's cache hold.

    The SPTE is made by the revision's own make_mmio_spte() in the format of nested paging on AMD.
    """
    defaults = case_values()
    state = {column: defaults[column] for column in _MMIO_COLUMNS} | {"mmio_cfg": MMIO_NPT}
    gfn, gen = addr >> PAGE_SHIFT, state["gen"]
    if preset == "in the vCPU's cache":
        cached = {"mmio_gva": addr & ~PAGE_OFFSET_MASK, "mmio_gfn": gfn, "mmio_gen": gen}
        return state | cached | {"mmio_access": NPT_ACCESS_MASK}
    if preset != "none":
        made = gen - 2 if preset == "MMIO SPTE, stale" else gen
        make: Callable[..., int] = revision.link(make_mmio_spte.__name__)
        state |= {"walk_leaf": 1, "spte1": make(mmio_format(MMIO_NPT), made, gfn, NPT_ACCESS_MASK)}
    if preset == "slots being updated":
        state["gen"] = gen | 1 << 63
    return state
