# SPDX-License-Identifier: GPL-2.0-only
"""Which events to record, and the commands that record them with each tool: one list for all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from shlex import join, quote

UNMAP = "kvm:kvm_unmap_hva_range"
"""The event that tells that the host takes pages of user space away.

Only the MMU notifier prints it: pages of guest_memfd that are freed, and attributes that are changed, print nothing.
Source: Linux `virt/kvm/kvm_main.c`, kvm_mmu_notifier_invalidate_range_start() (v6.12).
"""

MAPPINGS = "kvmmmu:*"
"""The events that tell what is mapped."""

SNP = ("kvm:kvm_rmp_fault", "kvm:kvm_vmgexit_enter")
"""What else tells of an SNP guest: faults by the RMP, and what it asks for, page-state changes too.

Source: Linux `arch/x86/kvm/trace.h` (v6.11; kvm_vmgexit_enter: v5.11).
"""

EVENTS = (
    *("kvm:kvm_page_fault", "kvm:kvm_exit", "kvm:kvm_entry", "kvm:kvm_userspace_exit"),
    *(
        "kvm:kvm_mmio",
        "kvm:kvm_emulate_insn",
        "kvm:kvm_inj_exception",
        "kvm:kvm_hypercall",
        UNMAP,
        MAPPINGS,
    ),
)
"""All that tell of page faults: that they came, how they ended, and what else happened to the page.

Source: Linux `arch/x86/kvm/trace.h`, `arch/x86/kvm/mmu/mmutrace.h`, `include/trace/events/kvm.h` (v6.12)."""


_MAPPINGS = (
    "kvm_mmu_", "kvm_tdp_mmu_", "fast_page_fault", "handle_mmio_page_fault", "mark_mmio_spte", "check_mmio_spte",
)  # fmt: skip
"""How events of kvmmmu begin."""


def missing(wanted: Iterable[str], seen: Collection[str]) -> list[str]:
    """Choose those of some events of which none was seen; `seen` has names without their systems."""
    return [
        event
        for event in dict.fromkeys(wanted)
        if not (
            any(name.startswith(_MAPPINGS) for name in seen)
            if event == MAPPINGS
            else event.partition(":")[2] in seen
        )
    ]


def options(events: Iterable[str]) -> str:
    """Write the options of trace-cmd that choose some events."""
    return " ".join(f"-e {event.removesuffix(':*')}" for event in events)


def trace_cmd() -> str:
    """Write the command that records all EVENTS with trace-cmd, on one line."""
    return f"trace-cmd record {options(EVENTS)}"


def perf() -> str:
    """Write the command that records all EVENTS on all CPUs with perf, on one line."""
    return " ".join(["perf record -a", *(f"-e {quote(event)}" for event in EVENTS)])


def tracefs() -> str:
    """Write the command that chooses all EVENTS, given in the folder /sys/kernel/tracing, on one line."""
    return f"echo {join(EVENTS)} > set_event"
