# SPDX-License-Identifier: GPL-2.0-only
"""What user space's operations and the events so far tell of a recorded VM."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.ftrace import TraceEvent
from kvm_pf.conformance.recordings import Step, number
from kvm_pf.guest.machine import PARTY_OPS
from kvm_pf.state import PAGE_SHIFT, PAGE_SIZE

__all__ = ("RecordedSlot", "VmState")


class RecordedSlot(NamedTuple):
    """A memslot that user space set: bytes, and the flags of its op."""

    id: int
    gpa: int
    size: int
    flags: tuple[str, ...]


_SPTE_MMU_PRESENT = 1 << 11
_PT_PAGE_SIZE = 1 << 7


@dataclass
class VmState:
    """What user space's operations and the events so far tell of the VM.

    `slots` are the user's slots (not the base slot that comes with the VM: its size is not told).
    `attributes` and `host` are (gpa, size, what) in the order of the ops: the last one that covers an address
    counts.  `updates` counts changes of the memslots; `generations` maps such counts to the generation seen
    then, also later ones.  `sptes` are the last traced entries by (gfn, level): exact for the TDP MMU, which
    traces every change; other page tables also lose entries without a trace.  `l2_sptes` are those that L2 runs
    on, by L2's page and level.  `mmio_gens` are the generations
    of the MMIO SPTEs by gfn.  `cached` is what each vCPU was last seen to keep of an MMIO fault: gva (0 if
    direct), gfn, and `updates` then; vCPU 0 where the trace names none.
    """

    vm: str = ""
    updates: int = 0
    slots: dict[int, RecordedSlot] = field(default_factory=dict)
    attributes: list[tuple[int, int, str]] = field(default_factory=list)
    host: list[tuple[int, int, str]] = field(default_factory=list)
    gmem_closed: set[int] = field(default_factory=set)
    generations: dict[int, int] = field(default_factory=dict)
    tdp_mmu: bool = False
    sptes: dict[tuple[int, int], int] = field(default_factory=dict)
    l2_sptes: dict[tuple[int, int], int] = field(default_factory=dict)
    mmio_gens: dict[int, int] = field(default_factory=dict)
    cached: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def copy(self) -> VmState:
        """Return a copy that later steps and events do not touch, but for the generations seen."""
        return replace(
            self, slots=dict(self.slots), attributes=list(self.attributes), host=list(self.host),
            gmem_closed=set(self.gmem_closed), sptes=dict(self.sptes), l2_sptes=dict(self.l2_sptes),
            mmio_gens=dict(self.mmio_gens), cached=dict(self.cached),
        )  # fmt: skip

    @property
    def generation(self) -> int | None:
        """The memslots' generation (low bits): seen, or reckoned from two that were seen; None if neither."""
        if self.updates in self.generations or len(self.generations) < 2:
            return self.generations.get(self.updates)
        (first, low), *_, (last, high) = sorted(self.generations.items())
        reckoned = low + (high - low) // (last - first) * (self.updates - first)
        return reckoned if reckoned >= 0 else None

    def slot(self, gfn: int) -> RecordedSlot | None:
        """Return the user's slot that holds a gfn."""
        return next((s for s in self.slots.values() if s.gpa <= gfn << 12 < s.gpa + s.size), None)

    def private(self, gfn: int) -> bool:
        """Say whether user space declared the page private."""
        return _last(self.attributes, gfn) == "private"

    def host_page(self, gfn: int) -> str | None:
        """Return the last host operation on the page (mprotro, unmap, zap), or None."""
        return _last(self.host, gfn)

    def spte(self, gfn: int, l2: bool = False) -> tuple[int, int] | None:
        """Return the traced entry that maps a gfn (a page of L2's), or ends the walk to it, and its level."""
        sptes = self.l2_sptes if l2 else self.sptes
        for level in (3, 2, 1):
            span = 9 * (level - 1)
            value = sptes.get((gfn >> span << span, level))
            if value is not None and (level == 1 or value & _PT_PAGE_SIZE or not value & _SPTE_MMU_PRESENT):
                return value, level
        return None

    def after(self, step: Step, where: str) -> VmState:
        """Return the state after a step's op: changed in place, or a new one for a new VM.

        Raises InputError, which begins with `where`, if the op lacks a word or number.
        """
        verb, *words = step.op.split()
        if step.result is not None and step.result.get("rc") == -1:
            return self
        try:
            match verb:
                case "vm":
                    return VmState(vm=words[0], updates=1)
                case "slot":
                    slot, gpa, size = (int(word, 0) for word in words[:3])
                    flags = tuple(flag for flag in words[3].split(",") if flag != "-")
                    self.slots[slot] = RecordedSlot(slot, gpa, size, flags)
                    self.updates += 1
                case "attr" if words[2] in ("private", "shared"):
                    self.attributes.append((int(words[0], 0), int(words[1], 0), words[2]))
                case "mprotro" | "unmap" | "zap":
                    self.host.append((int(words[0], 0), int(words[1], 0), verb))
                case "closegmem":
                    self.gmem_closed.add(int(words[0], 0))
                case "attr":
                    raise ValueError(words[2])
        except (ValueError, IndexError) as error:
            what = "lacks a word or number; see the ops in kvm_pf.conformance.recordings"
            raise InputError(f"{where}: step {step.number}: {step.op!r} {what}") from error
        return self

    def act(self, words: str, where: str) -> None:
        """Take over what a party of user space begins to do to its page: OP ADDRESS.

        Raises InputError, which begins with `where`, if the address is no number.
        """
        act, _, address = words.partition(" ")
        if act in PARTY_OPS:
            verb, *kind = PARTY_OPS[act]
            ranges = self.attributes if kind else self.host
            ranges.append((number(address, where), PAGE_SIZE, kind[0] if kind else verb))

    def see(self, event: TraceEvent, l2_page: int | None = None, nested: bool = False) -> None:
        """Take over what an event tells of page tables and generations.

        `l2_page`: it comes from a fault of L2's on that page, `nested`: with a nested page table of L1's.

        L1 and an L2 without a nested page table have tables of the same gfns, and the events do not tell which is
        meant.  A change that is not a fault's own is of that table which has the old value, L1's before L2's.
        """
        match event.name, event.fields:
            case "kvm_tdp_mmu_spte_changed", {
                "gfn": int(gfn), "level": int(level), "old_spte": int(old), "new_spte": int(spte),
            }:  # fmt: skip
                self.tdp_mmu = True
                l1s, l2s = self.sptes.get((gfn, level)), self.l2_sptes.get((gfn, level))
                l2 = l2s == old != l1s
                if l2_page is not None and not nested:
                    l2 = (l2_page ^ gfn) >> 9 * (level - 1) == 0
                elif nested:
                    l2 = False
                (self.l2_sptes if l2 else self.sptes)[gfn, level] = spte
                self.mmio_gens.pop(gfn, None)
            case "fast_page_fault", {"fixed": 1, "gva": int(gpa), "new": int(spte)} if self.tdp_mmu:
                level = (self.spte(gpa >> PAGE_SHIFT) or (0, 1))[1]
                span = 9 * (level - 1)
                self.sptes[gpa >> PAGE_SHIFT >> span << span, level] = spte
            case "kvm_mmu_set_spte", {"gfn": int(gfn), "level": int(level), "spte": int(spte), "at": int(at)}:
                if l2_page is None:
                    self.sptes[gfn, level] = spte
                else:  # the entry's own address tells which page of L2's it is for
                    span = 9 * (level - 1)
                    page = (l2_page >> span & ~0x1FF | at >> 3 & 0x1FF) << span
                    self.l2_sptes[page, level] = spte
                self.mmio_gens.pop(gfn, None)
            case "mark_mmio_spte", {"gfn": int(gfn), "gen": int(gen)}:
                if not self.tdp_mmu:  # the value is not traced
                    self.sptes.pop((gfn, 1), None)
                self.mmio_gens[gfn] = self.generations[self.updates] = gen
            case "check_mmio_spte", {"kvm_gen": int(gen)}:
                self.generations[self.updates] = gen


def _last(ranges: list[tuple[int, int, str]], gfn: int) -> str | None:
    """Return what the last range that covers a gfn says."""
    return next((what for gpa, size, what in reversed(ranges) if gpa <= gfn << 12 < gpa + size), None)
