# SPDX-License-Identifier: GPL-2.0-only
"""Which events to record, and the commands that record them with each tool: one list for all."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import join, quote

FAULTS = ("kvm:kvm_page_fault", "kvm:kvm_exit", "kvm:kvm_entry", "kvm:kvm_userspace_exit")
"""What every trace of page faults should have."""

ENDINGS = ("kvm:kvm_mmio", "kvm:kvm_emulate_insn", "kvm:kvm_inj_exception", "kvmmmu:*")
"""How faults end; `kvmmmu:*` is all events of that subsystem."""

HYPERCALL, UNMAP = "kvm:kvm_hypercall", "kvm:kvm_unmap_hva_range"
"""The guest asks for something, a conversion of memory for one; the host takes pages away."""

EVENTS = (*FAULTS, *ENDINGS[:-1], HYPERCALL, UNMAP, ENDINGS[-1])
"""All that tell of a page fault.

Source: Linux `arch/x86/kvm/trace.h`, `arch/x86/kvm/mmu/mmutrace.h`, `include/trace/events/kvm.h` (v6.12)."""


def trace_cmd(events: Iterable[str] = EVENTS) -> str:
    """Write the command that records those of EVENTS that are in `events` with trace-cmd, on one line."""
    wanted = set(events)
    return " ".join(
        ["trace-cmd record", *(f"-e {event.removesuffix(':*')}" for event in EVENTS if event in wanted)]
    )


def perf() -> str:
    """Write the command that records all EVENTS on all CPUs with perf, on one line."""
    return " ".join(["perf record -a", *(f"-e {quote(event)}" for event in EVENTS)])


def tracefs() -> str:
    """Write the command that chooses all EVENTS, given in the folder /sys/kernel/tracing, on one line."""
    return f"echo {join(EVENTS)} > set_event"
