# SPDX-License-Identifier: GPL-2.0-only
"""A guest in small: one VM, one vCPU, and its faults one after another.

`take` hands the machine one exit as a CPU reports it.  `access` lets the guest touch memory: the page-table
entries decide whether the CPU faults and with which code, the path runs, and the guest tries again until it is
through.  `run` takes the operations of the recordings' scenarios; `kvm_pf.conformance.recordings` lists them.  What
lasts between faults is kept in `kvm_pf.guest.memory`; warnings that were printed and statistics are kept here.

The guest's own code and page tables never fault.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, get_type_hints

from kvm_pf import exits
from kvm_pf import fault as path
from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_MASK,
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import check, typed
from kvm_pf.exits import SOURCE_WARN_NAMES, Event, SourceOutcome
from kvm_pf.faultin import FAULTIN_WARN_NAMES
from kvm_pf.guest.memory import (
    HARDWARE,
    PDE_ADDRESS,
    PDE_NX,
    PDE_SHIFT,
    PDE_USER,
    PDE_WRITE,
    Given,
    GuestMemory,
    Handler,
    Options,
)
from kvm_pf.revisions import Revision
from kvm_pf.run.inputs import number as read_number
from kvm_pf.run.tables import VM_TYPES
from kvm_pf.run.watch import Record, flat
from kvm_pf.spte import SPTE_MMU_PRESENT_MASK
from kvm_pf.state import (
    NO_MEMORY_FAULT,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    Fault,
    Handled,
    MemoryFault,
    Mmu,
    Outcome,
    Stats,
    Vcpu,
)

PATIENCE = 16
"""Faults of one access after which a guest counts as stuck."""
EFER_NX = 1 << 11
EINVAL = 22
_KINDS = {"private": True, "shared": False}
VMS = {"default": "default", "swprot": "sw-protected"}
"""The kinds of VM in the scenarios' words."""
_EPT_ACCESS = {"r": EPT_VIOLATION_ACC_READ, "w": EPT_VIOLATION_ACC_WRITE, "x": EPT_VIOLATION_ACC_INSTR}
_EPT_ADVANCED = ((PDE_USER, 9), (PDE_WRITE, 10), (PDE_NX, 11))


class Taken(NamedTuple):
    """One fault, from the exit to the answer."""

    event: Event | None  # None: no exit (pre-fault, async page ready)
    source: SourceOutcome | None
    addr: int  # u64, handed to the MMU
    error_code: int  # u64, the same
    outcome: Outcome | None  # None: kvm_mmu_page_fault() was not asked
    handled: Handled  # what kvm_mmu_do_page_fault() did
    handler: Handler | None
    ret: int  # the exit handler's result; pre-fault: bytes done
    exit: MemoryFault
    warns: tuple[str, ...]
    printed: tuple[str, ...]  # those of the warnings that came for the first time
    stats: Counter[str]
    records: tuple[Record, ...]  # the watched steps

    def __str__(self) -> str:
        return "\n".join(f"{'  ' * r.depth + r.step:<30} {r.why}".rstrip() for r in flat(list(self.records)))


class Exit(NamedTuple):
    """How an access ended: done, mmio, internal-error, memory-fault, error, or stuck (it faults for ever)."""

    reason: str
    errno: int = 0
    memory_fault: MemoryFault = NO_MEMORY_FAULT


class Access(NamedTuple):
    """One access of the guest: the faults it took, and how it ended."""

    op: str
    faults: tuple[Taken, ...]
    exit: Exit


class Machine(GuestMemory):
    """One VM with one vCPU under one revision of KVM.

    `vm_type`: a name of `kvm_pf.run.tables.VM_TYPES`.  `hardware`: npt (AMD), ept (Intel), shadow (no nested
    paging).  Keyword options are the fields of `kvm_pf.guest.memory.Options`.  Raises InputError for anything else.

    >>> machine = Machine("sw-protected")
    >>> machine.add_slot(1, 0x40000000, 0x200000, "gmem"), machine.set_attributes(0x40000000, 0x1000, True)
    (0, 0)
    >>> taken = machine.access("w", 0x40000000).faults[0]
    >>> hex(taken.error_code), hex(taken.handled.fault.error_code), taken.handled.fault.is_private
    ('0x100000006', '0x2000100000006', True)
    """

    def __init__(
        self,
        vm_type: str = "default",
        hardware: str = "npt",
        revision: str | Revision = "posted",
        **options: Any,
    ) -> None:
        named = [(vm_type, VM_TYPES), (hardware, HARDWARE), *((name, Options._fields) for name in options)]
        for value, known in named:
            if not isinstance(value, str) or value not in known:
                raise InputError(f"a machine has no {ascii(value)[:80]}; one of {', '.join(known)} is wanted")
        hints = get_type_hints(Options)
        options = {name: check(f"Machine: {name}", value, hints[name]) for name, value in options.items()}
        self.warned: set[str] = set()
        super().__init__(vm_type, hardware, revision, Options(**options))
        self.guest = exits.Guest(mbec=self.options.mbec, gmet=self.options.gmet, nrips=self.options.nrips)
        after_handler = self.linked(path.after_fault)

        def page_fault(vcpu: Vcpu, fault: Fault) -> tuple[int, bool]:
            return self.handle(vcpu, fault), False

        def after_fault(vcpu: Vcpu, *rest: int) -> path.After:
            after: path.After = after_handler(vcpu._replace(cache=self.cache), *rest)
            return after

        names = {"page_fault": page_fault, "after_fault": after_fault}
        self._mmu_page_fault = self.linked(path.kvm_mmu_page_fault, **names)
        self._page_fault = page_fault
        self._source = self.linked(exits.source)

    def reset(self, vm_type: str) -> None:
        """Start a new VM; warnings that were printed stay printed."""
        super().reset(vm_type)
        self.ioeventfds: dict[int, int] = {}
        self.armed: list[tuple[str, int, int, int, int]] = []
        self.stats: Counter[str] = Counter()

    # --- one fault ---

    @typed()
    def take(self, event: Event, given: Given | None = None) -> Taken:
        """Hand an exit to KVM: the exit's handler, kvm_mmu_page_fault(), the page-fault handler."""
        self._begin(given)
        asked: SourceOutcome = self._source(event)
        if not asked.mmu.called:
            return self._taken(event, asked, 0, 0, None, path.NO_FAULT, asked.ret)
        addr = asked.mmu.addr
        error_code = (asked.mmu.error_code | self.given.pf_set) & ~self.given.pf_clear ^ self.given.pf_flip
        emu_ret = self.given.emu_ret
        if emu_ret is None:  # an event on a write of 8 bytes, or of any size, needs no user space
            emu_ret = int(self.ioeventfds.get(addr) in (0, 8))
        vcpu = self.vcpu(addr, emu_ret)
        outcome: Outcome = self._mmu_page_fault(vcpu, addr, error_code, asked.mmu.insn_len)
        if self.handler is None or self.handler.finished is None:
            self.cache = outcome.mmio.cache
        source: SourceOutcome = self._source(event._replace(mmu_ret=outcome.ret))
        return self._taken(event, source, addr, error_code, outcome, outcome.handled, source.ret)

    @typed(gpa=64, size=64)
    def pre_fault(self, gpa: int, size: int, given: Given | None = None) -> Taken:
        """Map a page ahead of the guest, one turn of KVM_PRE_FAULT_MEMORY; `ret` is the number of bytes done."""
        self._begin(given)
        gfn = gpa >> PAGE_SHIFT
        level = self.mapping_level(gfn, None if self.private(gfn) else self.slots.find(gfn), 2)
        pre_fault = self.linked(exits.kvm_arch_vcpu_pre_fault_memory, page_fault=self._page_fault)
        done = pre_fault(self.vcpu(gpa, 0), exits.PreFault(gpa, size, level=level))
        return self._taken(None, None, done.addr, done.error_code, None, done.handled, done.ret)

    @typed(addr=64, error_code=64)
    def page_ready(self, addr: int, error_code: int, given: Given | None = None) -> Taken:
        """Map a page that was not there when the guest touched it (async page fault)."""
        self._begin(given)
        page_ready = self.linked(exits.kvm_arch_async_page_ready, page_fault=self._page_fault)
        done = page_ready(self.vcpu(addr, 0), exits.AsyncPf(addr, error_code, self.mmu.direct))
        return self._taken(None, None, addr, error_code, None, done.handled, 0)

    def _begin(self, given: Given | None) -> None:
        self.given, self.handler, self.watcher.records = given or Given(), None, []

    def _taken(
        self,
        event: Event | None,
        source: SourceOutcome | None,
        addr: int,
        error_code: int,
        outcome: Outcome | None,
        handled: Handled,
        ret: int,
    ) -> Taken:
        handler, exit_ = self.handler, handled.exit
        counted = outcome.stats if outcome else handled.stats
        stats = Counter({f"pf_{name}": n for name, n in zip(Stats._fields, counted, strict=True) if n})
        warns = _named(source.warns, SOURCE_WARN_NAMES) if source else []
        warns += _named(outcome.warns, FAULTIN_WARN_NAMES) if outcome else []
        if handler:
            stats.update(handler.stats)
            if handler.finished:
                warns += _named(handler.finished.warns, FAULTIN_WARN_NAMES)
                exit_ = handler.finished.exit if handler.finished.exit.exit_reason else exit_
        printed = tuple(name for name in warns if name not in self.warned)
        self.stats.update(stats)
        self.warned.update(warns)
        records = tuple(self.watcher.records)
        return Taken(
            event, source, addr, error_code, outcome, handled, handler, ret, exit_, tuple(warns), printed, stats,
            records,
        )  # fmt: skip

    # --- the guest ---

    @typed(addr=64)
    def exit_for(self, access: str, addr: int) -> Event | None:
        """Return the exit with which the CPU reports an access (r, w or x), or None if it succeeds.

        Source: AMD APM vol. 2, nested paging: #NPF counts as a user access, bit 32 says "final address".
        Intel SDM vol. 3, EPT misconfigurations; table of exit qualifications for EPT violations.
        """
        gpa, pde = self.translate(addr)
        spte, _ = self.entry((addr if self.mmu.direct else gpa) >> PAGE_SHIFT)
        if self.allows(spte, access):
            return None
        guest = self.guest._replace(
            fast_mmio=self.ioeventfds.get(addr) == 0, guest_mode=self.mmu.guest_mode, next_rip_known=True
        )
        reserved, present = self.is_mmio(spte), spte & SPTE_MMU_PRESENT_MASK != 0
        if access not in _EPT_ACCESS:
            raise InputError(f"an access is one of {', '.join(_EPT_ACCESS)}, not {ascii(access)[:80]}")
        if self.hardware == "ept":
            if reserved:
                return Event(exits.KIND_MISCFG, 0, addr, guest=guest)
            q = _EPT_ACCESS[access] | EPT_VIOLATION_GVA_IS_VALID | EPT_VIOLATION_GVA_TRANSLATED
            q |= spte << 3 & EPT_VIOLATION_RWX_MASK if present else 0
            q |= sum(1 << bit for flag, bit in _EPT_ADVANCED if pde & flag)
            return Event(exits.KIND_EPT, q, addr, guest=guest)
        code = {"r": 0, "w": PFERR_WRITE_MASK, "x": PFERR_FETCH_MASK}[access]
        code |= PFERR_RSVD_MASK if reserved else 0
        code |= PFERR_PRESENT_MASK if present or (reserved and self.options.reserved_is_present) else 0
        if self.hardware == "npt":
            code |= PFERR_USER_MASK | PFERR_GUEST_FINAL_MASK
            return Event(exits.KIND_NPF, code, addr, guest=guest)
        return Event(exits.KIND_PF, code, addr, guest=guest)

    @typed(addr=64)
    def access(self, kind: str, addr: int) -> Access:
        """Let the guest read (r), write (w), fetch (x) or do a locked read-modify-write (i) at an address.

        A locked access is a write for EPT; elsewhere, as QEMU does it, a read and then a write.  After each
        fault the guest begins anew, until the access succeeds or ends in user space.  Raises InputError for
        another kind.
        """
        kinds = {"r": "r", "w": "w", "x": "x", "i": "w" if self.hardware == "ept" else "rw"}
        if kind not in kinds:
            raise InputError(f"an access is one of {', '.join(kinds)}, not {kind!r}")
        faults: list[Taken] = []
        exit_ = Exit("stuck")
        while len(faults) < PATIENCE:
            exits = (self.exit_for(each, addr) for each in kinds[kind])
            event = next((event for event in exits if event), None)
            if event is None:
                exit_ = Exit("done")
                break
            faults.append(self.take(*self._inject(event)))
            if ended := _ended(faults[-1], kind):
                exit_ = ended
                break
        return Access(f"{kind} {addr:#x}", tuple(faults), exit_)

    def _inject(self, event: Event) -> tuple[Event, Given]:
        """Change the CPU's code, or kvm_mmu_page_fault()'s argument, if `inj` armed that for this address."""
        where = {exits.KIND_NPF: "npf", exits.KIND_EPT: "ept"}.get(event.kind)
        for n, (at, set_, clear, addr, count) in enumerate(self.armed):
            if addr == event.addr and at in ("pf", where):
                self.armed[n : n + 1] = [(at, set_, clear, addr, count - 1)] if count > 1 else []
                if at == "pf":
                    return event, Given(pf_set=set_, pf_clear=clear)
                return event._replace(info=(event.info | set_) & ~clear), Given()
        return event, Given()

    @typed(l2_gpa=64, l1_gpa=64)
    def l2_access(self, kind: str, l2_gpa: int, l1_gpa: int) -> Taken:
        """Let an L2 guest touch an L2 GPA that L1's nested tables map to `l1_gpa`, on a page not yet mapped.

        KVM shadows L1's tables: the MMU is nested and not direct, the fault's address is the L2 GPA.
        """
        mmu, self.mmu = self.mmu, Mmu(True, False, False, True, True)
        self.l2_pages = {l2_gpa >> PAGE_SHIFT: l1_gpa & ~PAGE_OFFSET_MASK}
        try:
            event = self.exit_for(kind, l2_gpa)
            if event is None:
                raise InputError(f"{kind} {l2_gpa:#x}: the page at {l1_gpa:#x} is mapped, there is no fault")
            return self.take(event)
        finally:
            self.mmu, self.l2_pages = mmu, None

    # --- scenarios ---

    @typed()
    def run(self, op: str) -> Access | int | None:
        """Carry out one operation of a scenario, such as "attr 0x40000000 0x1000 private" or "r 0x40000000".

        Returns the access, or the result of a system call (0, bytes not done, or a negative errno); None for
        what does not concern memory.  Raises InputError for an operation that is unknown or lacks a word.
        """
        verb, *words = op.split() or [""]
        try:
            return self._run(verb, words)
        except (LookupError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{op!r} lacks a word or number, or has one too many; kvm_pf.conformance.recordings lists them"
            ) from None

    def _run(self, verb: str, words: list[str]) -> Access | int | None:
        def number(n: int) -> int:
            if (found := read_number(words[n])) is None:
                raise ValueError
            return found

        def gfns(gpa: int, size: int) -> tuple[int, int]:
            return gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT

        match verb:
            case "r" | "w" | "x" | "i":
                return self.access(verb, number(0))
            case "vm":
                if words[0] == "swprot" and not self.offers_sw_protected:
                    return -EINVAL
                if words[0] not in (*VMS, *VM_TYPES):
                    raise ValueError
                self.reset(VMS.get(words[0], words[0]))
                return 0
            case "slot":
                flags = [flag for flag in words[3].split(",") if flag != "-"]
                return self.add_slot(number(0), number(1), number(2), *flags)
            case "attr":
                return self.set_attributes(number(0), number(1), _KINDS[words[2]])
            case "prefault":
                return self.prefault(number(0), number(1))[0]
            case "poke":
                gfn = number(0) >> PAGE_SHIFT
                for replaced in self.host.touch(gfn, gfn + 1):
                    self.drop(replaced, replaced + 1)
            case "mprotro" | "unmap" | "zap":
                self.host.change(verb, *gfns(number(0), number(1)))
                self.drop(*gfns(number(0), number(1)))
            case "punch":
                start, end = gfns(number(1), number(2))
                base = self.slots[number(0)].base_gfn
                self.drop(base + start, base + end, self.private)
            case "closegmem":
                slot = self.slots[number(0)]
                self.drop(slot.base_gfn, slot.end_gfn, self.private)
                self.gmem_closed.add(slot.id)
            case "cleardirty":
                slot = self.slots[number(0)]
                self.write_protect(slot.base_gfn, slot.end_gfn)
            case "ioeventfd":
                self.ioeventfds[number(0)] = number(1)
            case "pde":
                index = number(0) >> PDE_SHIFT
                self.pdes[index] = index << PDE_SHIFT | number(1) & ~PDE_ADDRESS
            case "efer" | "smap":
                self.nx = number(0) & EFER_NX != 0 if verb == "efer" else self.nx
                if not self.mmu.direct:  # another kind of shadow pages; kvm_mmu_sync_roots() clears the cache
                    self.entries.clear()
                    self.cache = self.cache._replace(gva=0)
            case "sh" if words[0] == "inj":
                at, set_, clear, addr, count = words[1], *(number(n) for n in range(2, 6))
                self.armed.append((at, set_, clear, addr, count))
            case "e" | "s" | "evread" | "sh":
                return None  # the emulator's own accesses walk the guest's tables, not KVM's
            case _:
                raise InputError(f"{verb!r} is no operation; kvm_pf.conformance.recordings lists them")
        return 0

    @property
    def offers_sw_protected(self) -> bool:
        """Whether software-protected VMs can be made here."""
        o = self.options
        return o.sw_protected and o.private_mem and o.tdp_mmu and self.hardware != "shadow"

    @typed(gpa=64, size=64)
    def prefault(self, gpa: int, size: int) -> tuple[int, int, list[Taken]]:
        """Map pages ahead of the guest (KVM_PRE_FAULT_MEMORY): result, bytes not done, the faults."""
        faults, left = [], size
        while left:
            faults.append(self.pre_fault(gpa, left))
            done = faults[-1].ret
            if done <= 0:
                return (done if left == size else 0), left, faults
            gpa, left = gpa + done, left - done
        return 0, 0, faults


def _named(warns: int, names: tuple[str, ...]) -> list[str]:
    return [name for n, name in enumerate(names) if warns >> n & 1]


def _ended(taken: Taken, kind: str) -> Exit | None:
    """Say how an access ended with this fault; None: the guest tries again."""
    if taken.ret < 0:
        return Exit("memory-fault" if taken.exit.exit_reason else "error", -taken.ret, taken.exit)
    if taken.ret == 0:
        return Exit("internal-error" if kind == "x" else "mmio")
    emulated = taken.outcome is not None and taken.outcome.emulation.called
    refused = taken.handler is not None and taken.handler.refused
    fast = taken.source is not None and taken.source.fast_mmio
    return Exit("done") if emulated or fast or refused else None


def nested_lookup_example(revision: str | Revision = "posted") -> Taken:
    """Show what the attribute look-up answers for an L2 guest: that of another page.

    L1 is software-protected.  The page at 0x40000000 is shared, and L1 maps it for L2 at L2 GPA 0x1000.  Its
    own page at 0x1000 is private.  The look-up takes the L2 GPA for a GPA of L1 and finds "private"; the
    fault-in, which knows the real page, finds "shared"; user space is told of a conflict that is none.

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 2: the comment on nested MMUs.
    """
    machine = Machine("sw-protected", revision=revision)
    machine.add_slot(1, 0x40000000, 0x200000, "gmem", "touch")
    machine.set_attributes(0x1000, 0x1000, private=True)
    return machine.l2_access("r", 0x1000, 0x40000000)
