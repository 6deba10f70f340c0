# SPDX-License-Identifier: GPL-2.0-only
"""Which events to record, and the commands that record them with each tool: one list for all."""

from __future__ import annotations

from shlex import join, quote

UNMAP = "kvm:kvm_unmap_hva_range"
"""The event that tells that the host takes pages away."""

EVENTS = (
    *("kvm:kvm_page_fault", "kvm:kvm_exit", "kvm:kvm_entry", "kvm:kvm_userspace_exit"),
    *(
        "kvm:kvm_mmio",
        "kvm:kvm_emulate_insn",
        "kvm:kvm_inj_exception",
        "kvm:kvm_hypercall",
        UNMAP,
        "kvmmmu:*",
    ),
)
"""All that tell of page faults: that they came, how they ended, and what else happened to the page.

Source: Linux `arch/x86/kvm/trace.h`, `arch/x86/kvm/mmu/mmutrace.h`, `include/trace/events/kvm.h` (v6.12)."""


def trace_cmd() -> str:
    """Write the command that records all EVENTS with trace-cmd, on one line."""
    return " ".join(["trace-cmd record", *(f"-e {event.removesuffix(':*')}" for event in EVENTS)])


def perf() -> str:
    """Write the command that records all EVENTS on all CPUs with perf, on one line."""
    return " ".join(["perf record -a", *(f"-e {quote(event)}" for event in EVENTS)])


def tracefs() -> str:
    """Write the command that chooses all EVENTS, given in the folder /sys/kernel/tracing, on one line."""
    return f"echo {join(EVENTS)} > set_event"
