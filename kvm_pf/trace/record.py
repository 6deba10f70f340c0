# SPDX-License-Identifier: GPL-2.0-only
"""One fault as a trace shows it, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

WAITS, STALE = "waits for the host's page", "its MMIO entry is older than the memslots"
"""How faults end that settle nothing, and whose trace says why."""


@dataclass(slots=True)
class Fault:
    """One fault as the trace shows it; the columns that follow from it are made by `frame`.

    `source` is npf, ept, misconfig or pf if an exit says so, "" if only `kvm_page_fault` was recorded,
    memory_fault for an exit to user space that a VMM reported, guest_pf for a guest's own report, hvf for
    macOS' Hypervisor.framework, fast if only `fast_page_fault` was recorded, pending if a TDX guest touched a page
    that it has not accepted.
    """

    line: int
    time: float | None = None
    cpu: int | None = None
    task: str | None = None
    pid: int | None = None
    vcpu: int | None = None
    rip: int | None = None
    address: int | None = None
    raw_code: int | None = None
    whole: bool = True
    source: str = ""
    nested: bool = False
    handler_code: int | None = None
    vectoring: int | None = None
    mmio: str = ""
    insn: str | None = None
    failed: bool = False
    exception: str | None = None
    mapped_now: bool = False
    zapped: bool = False
    to_l1: bool = False
    user_exit: str | None = None
    entered: bool = False
    size: int | None = None
    traced: bool = False
    step: str | None = None
    declared: bool | None = None
    conversion: int | None = None
    exit_code: int | None = None
    again: int = 0
    took: float | None = None
    waits: bool = False

    @property
    def outcome(self) -> str:
        """How the fault ended, as far as the trace shows it."""
        if self.to_l1:
            return "passed to L1"
        if self.failed and self.mmio == "guest-reserved":
            return "emulation failed: a reserved bit in the guest's own page tables"
        if self.failed:
            return f"emulation failed, {self.exception} injected" if self.exception else "emulation failed"
        if self.exception:
            return f"{self.exception} injected"
        if self.user_exit:
            return f"to user space: {self.user_exit}"
        if self.mmio in ("read", "write", "unsatisfied-read", "fast"):
            return {"fast": "fast MMIO", "unsatisfied-read": "MMIO read"}.get(self.mmio, f"MMIO {self.mmio}")
        if self.insn is not None:
            return "emulated"
        if self.mapped_now:
            return "mapped"
        if self.waits:
            return WAITS
        if self.mmio == "stale":
            return STALE
        return "resumed" if self.entered else "not shown"
