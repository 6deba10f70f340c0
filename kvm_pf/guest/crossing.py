# SPDX-License-Identifier: GPL-2.0-only
"""Two parties and one page: a fault is held, something else happens, the fault goes on; every step is told.

`cross` lets a machine take one fault of vCPU 0 up to a place, then lets the other party act, then ends the fault.
What each step asked and was told is kept, with the state that both parties share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.guest.machine import PARTY_OPS, Machine, Taken, Underway
from kvm_pf.guest.memory import PLACES, Handler
from kvm_pf.run.inputs import answer
from kvm_pf.run.inputs import number as read_number
from kvm_pf.spte import SPTE_MMU_PRESENT_MASK
from kvm_pf.state import KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_MEMORY_EXIT_FLAG_PRIVATE, PAGE_SHIFT


class Moment(NamedTuple):
    """One step of one party, and what the parties share after it."""

    party: int  # 0: the vCPU whose fault is held; 1: the other party
    step: str  # one of PLACES, or what user space does
    text: str
    answer: str  # the fault's result, if this was its last step
    private: bool  # of the first party's page: what user space declares
    seq: int  # mmu_invalidate_seq
    spte: int
    entry: str  # the same in words: none, MMIO, or what it allows


def _spoken(fault: Underway, before: str, machine: Machine, gfn: int) -> tuple[str, str]:
    """Say in which of PLACES a fault was at the step `before`, and what it learnt there."""
    h, o = fault.handler, fault.taken
    kind = {True: "private", False: "shared"}
    if before == "kvm_mmu_page_fault":
        private = h.fault.is_private if h else machine.private(gfn)
        return before, f"first look-up: {kind[private]}"
    if h is None or (o is not None and before == "fast_page_fault"):
        return before, "answered without a lock" if h else "answered before the handler"
    match before:
        case "fast_page_fault":
            return before, "nothing to mend without a lock"
        case "kvm_faultin_pfn":
            return before, f"notes the count: {h.mmu_seq}"
        case "kvm_mem_is_private" if not machine.revision.has("compares-first"):
            return "kvm_faultin_pfn", "checks the count"
        case "kvm_mem_is_private":
            refused = h.fault.is_private != machine.private(gfn)
            return before, f"second look-up: {kind[machine.private(gfn)]}" + (
                ", not the same" if refused else ""
            )
        case "__kvm_faultin_pfn":
            return _looked(h, machine)
        case "is_page_fault_stale":
            seq = machine.invalidations.mmu_invalidate_seq
            return before, f"the count is {seq}" + (
                ", as noted" if seq == h.mmu_seq else f", not {h.mmu_seq}"
            )
    spurious = h.ret == machine.constant("RET_PF_SPURIOUS")
    return before, "finds the same entry" if spurious else "makes the entry"


def _looked(h: Handler, machine: Machine) -> tuple[str, str]:
    """Say what the fault-in did after its look-up of the attribute, and in which of its two functions.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn(), __kvm_faultin_pfn() (v6.9, v6.12).
    """
    outer, inner = "kvm_faultin_pfn", "__kvm_faultin_pfn"
    assert h.finished is not None
    if h.finished.calls.gup or h.finished.calls.gmem:
        return inner, "looks for the page frame"
    if h.finished.exit.exit_reason:
        if h.fault.is_private != (h.faultin_found & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0):
            first = machine.revision.has("compares-first")
            return outer if first else inner, "they differ: user space is told"
        return inner if h.fault.slot else outer, "no private memory: user space is told"
    return outer, "the count has moved" if h.fault.slot else "there is no slot: emulated memory"


def _entry(machine: Machine, spte: int) -> str:
    if machine.is_mmio(spte):
        return "MMIO"
    if not spte & SPTE_MMU_PRESENT_MASK:
        return "none"
    if not machine.allows(spte, "w"):
        return "read-only"
    return "writable, dirty" if spte & machine.dirty else "writable"


def _last(taken: Taken, machine: Machine) -> str:
    """Name a fault's answer, and the exit that goes with it."""
    exit_ = taken.exit
    if exit_.exit_reason:
        return f"exit: {'private' if exit_.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE else 'shared'}"
    ret = taken.handled.ret if taken.handled.called else taken.ret
    return answer(ret, machine.revision)


@typed()
def cross(machine: Machine, op: str, held: str) -> list[Moment]:
    """Let two parties act, "r 0x40000000 | priv 0x40000000" for example, the first held when `held` comes next.

    The first is an access of vCPU 0 (r, w, x); the second one of vCPU 1, or what user space does (zap, ro, rw, priv,
    shared).  Only the first fault of each is taken, not what the guest does after it.  `held`: one of
    `kvm_pf.guest.memory.PLACES`.  Returns each step in order; the machine has gone through them.  Raises InputError
    for another operation, if the first access does not fault, or where a lock keeps the second party out.
    """
    parts = [part.split()[:2] for part in op.split("|")]
    if len(parts) != 2 or any(len(part) < 2 for part in parts) or held not in PLACES:
        raise InputError(
            f"{op!r}, held at {held!r}: two operations with an address, and one of {', '.join(PLACES)}"
        )
    (first, at), (second, other) = parts
    addresses = [read_number(at), read_number(other)]
    if (
        addresses[0] is None
        or addresses[1] is None
        or first not in "rwx"
        or second not in ("r", "w", "x", *PARTY_OPS)
    ):
        raise InputError(
            f"{op!r}: an access (r, w, x) and another or one of {', '.join(PARTY_OPS)} are wanted"
        )
    if held == PLACES[-1] and second in PARTY_OPS:
        raise InputError(f"{op!r}, held at {held}: mmu_lock is held there, and {second} has to wait for it")
    gfn = addresses[0] >> PAGE_SHIFT
    moments: list[Moment] = []

    def told(party: int, step: str, text: str, last: str = "") -> None:
        seq = machine.invalidations.mmu_invalidate_seq
        spte, _ = machine.entry(gfn)
        moments.append(
            Moment(party, step, text, last, machine.private(gfn), seq, spte, _entry(machine, spte))
        )

    def go(party: int, fault: Underway, to: str) -> None:
        for step in _between(fault, to):
            fault.go_on((*PLACES, "done")[PLACES.index(step) + 1])
            ended = _last(fault.taken, machine) if fault.taken else ""
            told(party, *_spoken(fault, step, machine, gfn), ended)

    def fault_of(party: int, kind: str, address: int) -> Underway:
        event = machine.exit_for(kind, address)
        if event is None:
            raise InputError(f"{kind} {address:#x} does not fault; a page that is not mapped yet is wanted")
        return machine.start(event, cpu=party)

    fault = fault_of(0, first, addresses[0])
    go(0, fault, held)
    if second in PARTY_OPS:
        machine.run_party(second, other)
        told(1, second, _DOES[second])
    elif machine.exit_for(second, addresses[1]) is None:
        told(1, second, "does not fault")
    else:
        go(1, fault_of(1, second, addresses[1]), "done")
    go(0, fault, "done")
    return moments


def _between(fault: Underway, to: str) -> Iterator[str]:
    """Yield what comes next of a fault, until that is `to`."""
    order = (*PLACES, "done")
    while order.index(fault.at) < order.index(to):
        yield fault.at


_DOES = {
    "zap": "the host takes the page away",
    "ro": "the host makes the page read-only",
    "rw": "the host makes the page writable",
    "priv": "user space declares it private",
    "shared": "user space declares it shared",
}
