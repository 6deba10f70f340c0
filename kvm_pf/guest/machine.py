# SPDX-License-Identifier: GPL-2.0-only
"""A guest in small: one VM, its vCPUs, and their faults, one after another or at the same time.

`take` hands the machine one exit as a CPU reports it; `start` does so and stops at each step, so that another vCPU
or user space can come in between.  `access` lets the guest touch memory: the page-table
entries decide whether the CPU faults and with which code, the path runs, and the guest tries again until it is
through.  `run` takes the operations of the recordings' scenarios; `kvm_pf.conformance.recordings` lists them.  What
lasts between faults is kept in `kvm_pf.guest.memory`; warnings that were printed and statistics are kept here.

The guest's own code and page tables never fault, nor do those of its guest, L2, where L1 maps them as the recorder
does.  L1's stores to the nested page table that it keeps for L2 do: KVM may watch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
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
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import named_bits
from kvm_pf.common.typed import check, typed
from kvm_pf.exits import SOURCE_WARN_NAMES, Event, SourceOutcome
from kvm_pf.faultin import FAULTIN_WARN_NAMES, KVM_MEM_READONLY
from kvm_pf.guest.memory import (
    HARDWARE,
    PDE_ADDRESS,
    PDE_NX,
    PDE_SHIFT,
    PDE_USER,
    PDE_WRITE,
    PLACES,
    Given,
    GuestMemory,
    Handler,
    Nested,
    Options,
)
from kvm_pf.guest.nested import LARGE, NPT_ROOT, NPT_TABLES, PageTable, Shadow, index
from kvm_pf.revisions import Revision
from kvm_pf.revisions.link import link
from kvm_pf.run.inputs import number as read_number
from kvm_pf.run.tables import VM_TYPES
from kvm_pf.run.watch import Record, flat
from kvm_pf.spte import SPTE_MMU_PRESENT_MASK
from kvm_pf.state import (
    NO_MEMORY_FAULT,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    Fault,
    Handled,
    MemoryFault,
    Mmu,
    Outcome,
    Stats,
    Vcpu,
)

L1_CR3 = 0x2000
"""Where the recorder's guest has its page table, L1 and L2 alike."""
HELD_AT = {1: "kvm_mmu_page_fault", 2: "kvm_faultin_pfn", 3: "is_page_fault_stale", 4: "fast_page_fault"}
"""Where `sh dly` holds a CPU: what comes next."""
PARTY_OPS = {
    "zap": ("zap",), "ro": ("mprotro",), "rw": ("mprotrw",), "priv": ("attr", "private"), "shared": ("attr", "shared"),
}  # fmt: skip
"""What a party of user space does to its page, as an operation and what follows address and size."""
PATIENCE = 16
"""Faults of one access after which a guest counts as stuck."""
EFER_NX = 1 << 11
EINVAL = 22
_KINDS = {"private": True, "shared": False}
VMS = {"default": "default", "swprot": "sw-protected"}
"""The kinds of VM in the scenarios' words."""
_EPT_ACCESS = {"r": EPT_VIOLATION_ACC_READ, "w": EPT_VIOLATION_ACC_WRITE, "x": EPT_VIOLATION_ACC_INSTR}
_EPT_ADVANCED = ((PDE_USER, 9), (PDE_WRITE, 10), (PDE_NX, 11))


# What L1 sees of its guest's exits.  Source: AMD APM vol. 2, appendix C; Intel SDM vol. 3, appendix C.
SVM_EXIT_HLT, SVM_EXIT_NPF, SVM_EXIT_ERR = 0x78, 0x400, 0xFFFFFFFF
EXIT_REASON_HLT, EXIT_REASON_EPT_VIOLATION, EXIT_REASON_EPT_MISCONFIG = 12, 48, 49


class L1Exit(NamedTuple):
    """An exit of L2's that L1 sees, as its control block (VMCB or VMCS) tells it."""

    code: int  # 32 bits
    info1: int  # u64: EXITINFO1, or the exit qualification
    info2: int | None  # u64: EXITINFO2, or the guest-physical address; None: what was there before


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
    l1_exit: L1Exit | None = None  # the fault is L1's: its table for L2 does not allow the access
    guest_mode: bool = False  # it came while L2 ran
    found: int = 0  # the attributes that kvm_mmu_page_fault() found, if it looked them up

    def __str__(self) -> str:
        return "\n".join(f"{'  ' * r.depth + r.step:<30} {r.why}".rstrip() for r in flat(list(self.records)))


class Exit(NamedTuple):
    """How an access ended: done, mmio, internal-error, memory-fault, error, stuck (it faults for ever), or l1.

    l1: L2's access came to nothing, L1 has the fault (`l1_exit`).
    """

    reason: str
    errno: int = 0
    memory_fault: MemoryFault = NO_MEMORY_FAULT
    l1_exit: L1Exit | None = None


class Access(NamedTuple):
    """One access of the guest: the faults it took, and how it ended.

    `copy`: for a page that was reached, which of its copies, "shared" or "private".
    """

    op: str
    faults: tuple[Taken, ...]
    exit: Exit
    copy: str | None = None


class Underway:
    """A fault under way on one vCPU; `at` is what comes next, one of `kvm_pf.guest.memory.PLACES`, or "done".

    The machine belongs to whoever goes on: what a fault keeps to itself is put aside while it waits.

    >>> machine = Machine()
    >>> machine.add_slot(1, 0x40000000, 0x200000), machine.host.touch(0x40000, 0x40200)
    (0, [])
    >>> held = machine.start(machine.exit_for("w", 0x40000000), to="is_page_fault_stale")
    >>> machine.run("zap 0x40000000 0x1000"), held.go_on().handled.ret  # RET_PF_RETRY
    (0, 1)
    """

    def __init__(self, machine: Machine, event: Event, given: Given | None, cpu: int) -> None:
        self.machine, self.event, self.cpu = machine, event, cpu
        self.at = ""
        self.taken: Taken | None = None
        self._kept: tuple[Given, Handler | None, list[Record]] = given or Given(), None, []
        self._steps = machine._taking(event)

    def go_on(self, to: str = "done") -> Taken | None:
        """Go on until `to` comes next, or what comes after it if it is not reached; return the fault when it is done.

        Raises InputError if there is no such place.
        """
        if to not in (*PLACES, "done"):
            raise InputError(
                f"a fault cannot be held at {ascii(to)[:80]}; one of {', '.join(PLACES)} is wanted"
            )
        order = (*PLACES, "done")
        while self.taken is None and (not self.at or order.index(self.at) < order.index(to)):
            self._step()
        return self.taken

    def _step(self) -> None:
        machine, aside = self.machine, self.machine.cpu
        machine.cpu, (machine.given, machine.handler, machine.watcher.records) = self.cpu, self._kept
        try:
            self.at = next(self._steps)
        except StopIteration as done:
            self.at, self.taken = "done", done.value
        finally:
            self._kept = machine.given, machine.handler, machine.watcher.records
            machine.cpu = aside

    def lose(self) -> None:
        """Let another vCPU change the entry first: this fault must be taken again."""
        given, handler, records = self._kept
        self._kept = given._replace(lost=True), handler, records

    @property
    def handler(self) -> Handler | None:
        """What the MMU's page-fault handler has done so far."""
        return self._kept[1]


class Machine(GuestMemory):
    """One VM with its vCPUs under one revision of KVM.

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
        self._asked: tuple[Vcpu, Fault] | None = None
        self._answer: int | None = None
        self._inner: list[Record] = []

        def page_fault(vcpu: Vcpu, fault: Fault) -> tuple[int, bool]:
            if self._answer is None:
                ret = self.handle(vcpu, fault)
            else:
                ret = self._answer
                self.watcher.adopt(self._inner)
            return ret, self.handler is not None and self.handler.fault.write_fault_to_shadow_pgtable

        def asked(vcpu: Vcpu, fault: Fault) -> tuple[int, bool]:
            self._asked = vcpu, fault
            return self.constant("RET_PF_RETRY"), False

        def after_fault(vcpu: Vcpu, *rest: int) -> path.After:
            after: path.After = after_handler(vcpu._replace(cache=self.cache), *rest)
            return after

        def left_private(fault: Fault) -> bool:
            handled = self.handler.fault if self.handler and not self.handler.refused else fault
            return handled.is_private

        whole: Any = path.kvm_mmu_page_fault
        self._learn = link(whole, {**self._names, "page_fault": asked})  # not watched
        names = {"page_fault": page_fault, "after_fault": after_fault, "left_private": left_private}
        self._mmu_page_fault = self.linked(path.kvm_mmu_page_fault, **names)
        self._page_fault = page_fault
        self._source = self.linked(exits.source)
        self._npf_exit = self.linked(exits.nested_svm_inject_npf_exit)
        self._ept_exit = self.linked(exits.nested_ept_inject_page_fault)

    def reset(self, vm_type: str) -> None:
        """Start a new VM; warnings that were printed stay printed."""
        super().reset(vm_type)
        self.ioeventfds: dict[int, int] = {}
        self.armed: list[tuple[str, int, int, int, int]] = []
        self.stats: Counter[str] = Counter()
        self.delay = "done"

    # --- one fault ---

    @typed()
    def take(self, event: Event, given: Given | None = None) -> Taken:
        """Hand an exit to KVM: the exit's handler, kvm_mmu_page_fault(), the page-fault handler."""
        taken = Underway(self, event, given, self.cpu).go_on()
        assert taken is not None
        return taken

    @typed(cpu=16)
    def start(self, event: Event, given: Given | None = None, cpu: int = 0, to: str = PLACES[0]) -> Underway:
        """Hand an exit of vCPU `cpu` to KVM, and stop when `to` comes next, one of `kvm_pf.guest.memory.PLACES`."""
        fault = Underway(self, event, given, cpu)
        fault.go_on(to)
        return fault

    def _taking(self, event: Event) -> Generator[str, None, Taken]:
        """Take an exit, with a stop at each of PLACES.

        The path is run twice.  It asks the handler for an answer and cannot wait for it, but it keeps nothing: the
        first run tells what the handler is asked, the second what follows from the answer.
        """
        asked: SourceOutcome = self._source(event)
        if not asked.mmu.called:
            return self._taken(event, asked, 0, 0, None, path.NO_FAULT, asked.ret)
        addr = asked.mmu.addr
        error_code = (asked.mmu.error_code | self.given.pf_set) & ~self.given.pf_clear ^ self.given.pf_flip
        yield "kvm_mmu_page_fault"
        emu_ret = self.given.emu_ret
        if emu_ret is None:  # memory, and an event on a write of 8 bytes, or of any size, need no user space
            emu_ret = int(self._emulates_memory(addr) or self.ioeventfds.get(addr) in (0, 8))
        vcpu = self.vcpu(addr, emu_ret)
        self._asked = None
        self._learn(vcpu, addr, error_code, asked.mmu.insn_len)
        records, self.watcher.records, answer = self.watcher.records, [], None
        if self._asked is not None:
            answer = yield from self.handling(*self._asked)
        self.watcher.records, self._inner, self._answer = records, self.watcher.records, answer
        outcome: Outcome = self._mmu_page_fault(vcpu, addr, error_code, asked.mmu.insn_len)
        self._answer = None
        if self.handler is None or self.handler.finished is None:
            self.cache = outcome.mmio.cache
        source: SourceOutcome = self._source(event._replace(mmu_ret=outcome.ret))
        taken = self._taken(event, source, addr, error_code, outcome, outcome.handled, source.ret)
        return taken._replace(found=vcpu.vm.attrs)

    def _emulates_memory(self, addr: int) -> bool:
        """Say whether an emulated access reaches memory that may be written to, no device of user space's."""
        gfn = self.page(addr)
        if self.l2 and self.mmu.nested:
            gfn = self.l2.table.walk(addr, 0, mark=False).gfn
        slot = self.slots.find(gfn)
        return slot is not None and not slot.flags & KVM_MEM_READONLY

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
        warns = named_bits(source.warns, SOURCE_WARN_NAMES) if source else []
        warns += named_bits(outcome.warns, FAULTIN_WARN_NAMES) if outcome else []
        if handler:
            stats.update(handler.stats)
            if handler.finished:
                warns += named_bits(handler.finished.warns, FAULTIN_WARN_NAMES)
                exit_ = handler.finished.exit if handler.finished.exit.exit_reason else exit_
        printed = tuple(name for name in warns if name not in self.warned)
        self.stats.update(stats)
        self.warned.update(warns)
        records = tuple(self.watcher.records)
        return Taken(
            event, source, addr, error_code, outcome, handled, handler, ret, exit_, tuple(warns), printed, stats,
            records, self._l1_exit(event, handler), self.mmu.guest_mode,
        )  # fmt: skip

    def _l1_exit(self, event: Event | None, handler: Handler | None) -> L1Exit | None:
        """Return the exit that L1 gets, if KVM's walk of L1's table found that the fault is L1's."""
        if event is None or handler is None or handler.walk is None or not handler.refused:
            return None
        walk = handler.walk
        if self.hardware != "ept":
            return L1Exit(SVM_EXIT_NPF, self._npf_exit(event.info, walk.error_code), event.addr)
        if walk.error_code & PFERR_RSVD_MASK:
            return L1Exit(EXIT_REASON_EPT_MISCONFIG, 0, event.addr)
        return L1Exit(EXIT_REASON_EPT_VIOLATION, self._ept_exit(event.info, walk.qualification), event.addr)

    # --- the guest ---

    @typed(addr=64)
    def exit_for(self, access: str, addr: int) -> Event | None:
        """Return the exit with which the CPU reports an access (r, w or x), or None if it succeeds.

        tables: the CPU walks the guest's own page tables, which it may write to.

        Source: AMD APM vol. 2, nested paging: #NPF counts as a user access, bit 32 says "final address".
        Intel SDM vol. 3, EPT misconfigurations; table of exit qualifications for EPT violations.
        """
        tables = access == "tables"
        _, pde = self.translate(addr)
        spte, _ = self.entry(self.page(addr))
        if self.allows(spte, "w" if tables else access):
            return None
        guest = self.guest._replace(
            fast_mmio=self.ioeventfds.get(addr) == 0, guest_mode=self.mmu.guest_mode, next_rip_known=True
        )
        reserved, present = self.is_mmio(spte), spte & SPTE_MMU_PRESENT_MASK != 0
        if access not in _EPT_ACCESS and not tables:
            raise InputError(f"an access is one of {', '.join(_EPT_ACCESS)}, not {ascii(access)[:80]}")
        if self.hardware == "ept":
            if reserved:
                return Event(exits.KIND_MISCFG, 0, addr, guest=guest)
            final = _EPT_ACCESS.get(access, 0) | EPT_VIOLATION_GVA_TRANSLATED
            walking = EPT_VIOLATION_ACC_READ | EPT_VIOLATION_ACC_WRITE
            q = EPT_VIOLATION_GVA_IS_VALID | (walking if tables else final)
            q |= spte << 3 & EPT_VIOLATION_RWX_MASK if present else 0
            q |= sum(1 << bit for flag, bit in _EPT_ADVANCED if pde & flag)
            return Event(exits.KIND_EPT, q, addr, guest=guest)
        code = {"r": 0, "x": PFERR_FETCH_MASK}.get(access, PFERR_WRITE_MASK)
        code |= PFERR_RSVD_MASK if reserved else 0
        code |= PFERR_PRESENT_MASK if present or (reserved and self.options.reserved_is_present) else 0
        if self.hardware == "npt":
            code |= PFERR_USER_MASK | (PFERR_GUEST_PAGE_MASK if tables else PFERR_GUEST_FINAL_MASK)
            return Event(exits.KIND_NPF, code, addr, guest=guest)
        return Event(exits.KIND_PF, code, addr, guest=guest)

    @typed(addr=64)
    def access(self, kind: str, addr: int) -> Access:
        """Let the guest read (r), write (w), fetch (x) or do a locked read-modify-write (i) at an address.

        A locked access is a write for EPT; elsewhere, as QEMU does it, a read and then a write.  After each
        fault the guest begins anew, until the access succeeds or ends in user space.  Raises InputError for
        another kind.
        """
        kinds = self._rights()
        if kind not in kinds:
            raise InputError(f"an access is one of {', '.join(kinds)}, not {kind!r}")
        return self._access(kind, kinds[kind], addr, "done", lambda: None)

    def _access(
        self, kind: str, rights: str, addr: int, held: str, meanwhile: Callable[[], object]
    ) -> Access:
        """Let the guest use `rights` (r, w, x) in turn.  The first fault that comes to `held` waits for `meanwhile`."""
        faults: list[Taken] = []
        exit_ = Exit("stuck")
        wanted = [(each, addr) for each in rights]
        if self.l2 and self.l2.running and self.l2.cr3 is not None:
            wanted.insert(0, ("tables", self.l2.cr3))
        while len(faults) < PATIENCE:
            exits = (self.exit_for(each, at) for each, at in wanted)
            event = next((event for event in exits if event), None)
            if event is None:
                exit_ = Exit("done")
                if "w" in rights:
                    self.mark_dirty(addr)
                break
            fault = self.start(*self._inject(event), self.cpu, to=held)
            if fault.at == held != "done":
                held = "done"
                meanwhile()
            taken = fault.go_on()
            assert taken is not None
            faults.append(taken)
            if ended := _ended(faults[-1], kind):
                exit_ = ended
                break
        copy = self._copy(addr) if exit_.reason == "done" else None
        if copy and faults and emulated(faults[-1]):
            copy = "shared"  # the emulator reads and writes through the host's mapping
        return Access(f"{kind} {addr:#x}", tuple(faults), exit_, copy)

    def _copy(self, addr: int) -> str | None:
        """Say which copy of a page the entry of an address maps; None: it maps none."""
        page = self.page(addr)
        if not self.entry(page)[0] & SPTE_MMU_PRESENT_MASK:
            return None
        if self.l2 and self.mmu.nested:
            leaf, _ = self.l2.shadow.find(page)
            private = leaf is not None and leaf.private
        else:
            private = self.private(page)  # entries go when the attribute changes
        return "private" if private else "shared"

    def _rights(self) -> dict[str, str]:
        """The rights that each kind of access needs, in turn."""
        return {"r": "r", "w": "w", "x": "x", "i": "w" if self.hardware == "ept" else "rw"}

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

    # --- L2 ---

    def nest(self, paging: bool = True, accessed_dirty: bool = True) -> int:
        """Make L1 a hypervisor: `paging`, with a nested page table that maps L2's first 2M to L1's own.

        `accessed_dirty`: its entries have accessed and dirty bits, if the machine's have; AMD's have always.
        """
        ept = self.hardware == "ept"
        table = PageTable(ept, not ept or (accessed_dirty and self.options.accessed_dirty))
        table.words = {
            NPT_TABLES[0]: table.node(NPT_TABLES[1]),
            NPT_TABLES[1]: table.node(NPT_TABLES[2]),
            NPT_TABLES[2]: table.leaf(0) | LARGE,
        }
        self.l2 = Nested(paging, table, Shadow(NPT_ROOT))
        for gpa in NPT_TABLES:
            self.host.touch(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + 1)
        return 0

    def _nested(self) -> Nested:
        if self.l2 is None:
            raise InputError("L1 is no hypervisor yet: nest comes first")
        return self.l2

    def enter_l2(self) -> bool:
        """Let L1 run L2 (VMRUN, VMLAUNCH); False: KVM refuses, for it has no nested paging of its own to build on.

        KVM takes over what L1 changed in its table.

        Source: Linux `arch/x86/kvm/svm/nested.c`, nested_svm_vmrun(), __nested_vmcb_check_controls(),
        `arch/x86/kvm/mmu/mmu.c`, kvm_init_shadow_npt_mmu(), kvm_init_shadow_ept_mmu(), kvm_mmu_load() (v6.12).
        """
        l2 = self._nested()
        if l2.paging and self.hardware == "shadow":
            return False
        l2.running = True
        self.look_as(l2=True)
        self._forget_gva()
        if l2.paging:
            _, new = l2.shadow.get(NPT_ROOT >> PAGE_SHIFT, 4)
            synced = l2.shadow.sync(l2.table, self._mmio_mark)
            for gfn in [*synced, *([NPT_ROOT >> PAGE_SHIFT] if new else [])]:
                self.watch(gfn)
        return True

    def _mmio_mark(self, gfn: int, writable: bool, executable: bool) -> int:
        access = self.access_bits(writable, executable)
        return int(self.make_mmio_spte(self.format, self.slots.generation, gfn, access))

    def look_as(self, l2: bool) -> None:
        """See memory as L1 does, or as L2: a step in which L1 runs L2 has faults of both."""
        if l2 and self.l2:
            direct = not self.l2.paging and self.l1_mmu.direct
            self.mmu = Mmu(True, direct, direct, True, self.l2.paging)
        else:
            self.mmu = self.l1_mmu

    def leave_l2(self) -> None:
        """Go back to L1."""
        if self.l2 and self.l2.running:
            self.l2.running = False
            self._forget_gva()
        self.look_as(l2=False)

    def _forget_gva(self) -> None:
        """Forget the last MMIO access by its virtual address: L1 and L2 have address spaces of their own.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_sync_roots() (v6.12).
        """
        if not self.l1_mmu.direct:
            self.cache = self.cache._replace(gva=0)

    @typed(addr=64)
    def l2_access(self, kind: str, addr: int) -> Access:
        """Let L1 run L2, and L2 touch an address of its own; then L1 goes on, unless user space has the vCPU.

        After an exit to user space that is an error, `run_again` goes on where L2 was.
        """
        self.leave_l2()
        if not self.enter_l2():
            return Access(f"l2{kind} {addr:#x}", (), Exit("l1", l1_exit=L1Exit(SVM_EXIT_ERR, 0, 0)))
        l2 = self._nested()
        if l2.paging:  # its code and page tables do not fault here, but KVM shadows L1's tables for them
            walk = l2.table.walk(L1_CR3, PFERR_WRITE_MASK | PFERR_USER_MASK)
            for gfn in l2.shadow.path(L1_CR3 >> PAGE_SHIFT, walk, walk.level)[1]:
                self.watch(gfn)
        l2.access = kind, addr
        return self.run_again()

    def run_again(self) -> Access:
        """Enter the guest again: L2 tries again what it was doing (KVM_RUN)."""
        l2 = self._nested()
        if not l2.running or l2.access is None:
            raise InputError("L2 is not running: it is not entered again")
        kind, addr = l2.access
        done = self.access(kind, addr)
        if done.exit.reason == "mmio" or not done.exit.errno:  # user space answers, L2 goes on and halts
            self.leave_l2()
            l2.access = None
        return done._replace(op=f"l2{kind} {addr:#x}")

    @typed(page=64, gpa=64)
    def l2_map(self, page: int, gpa: int, rights: str = "", clear: bool = False) -> list[Access]:
        """Let L1 map L2's page to a page of its own, or nothing, by stores to its nested page table.

        `rights`: w writable, r not, n not executable, L a page of 2M; no letter: all rights.
        """
        self.leave_l2()
        return [self.l1_store(at, value) for at, value in self.l2_stores(page, gpa, rights, clear)]

    def l2_stores(self, page: int, gpa: int, rights: str, clear: bool) -> list[tuple[int, int]]:
        """Return the stores (address, 64 bits) with which L1 maps a page; tables are taken as they are needed."""
        l2, words = self._nested(), self._nested().table.words
        stores: list[tuple[int, int]] = []

        def entry(table: int, level: int) -> int:
            return table | index(page >> PAGE_SHIFT, level) << 3

        def new_table(at: int) -> int:
            node, l2.next_table = l2.table.node(l2.next_table), l2.next_table + 0x1000
            self.host.touch(node >> PAGE_SHIFT, (node >> PAGE_SHIFT) + 1)
            stores.append((at, node))
            return node

        at = entry(NPT_TABLES[1], 3)
        node = words.get(at, 0)
        node = node if l2.table.present(node) else new_table(at)
        at = entry(node & ~PAGE_OFFSET_MASK, PG_LEVEL_2M)
        node = words.get(at, 0)
        if "L" in rights:
            return [*stores, (at, 0 if clear else l2.table.leaf(gpa) | LARGE)]
        if not l2.table.present(node) or node & LARGE:
            node = new_table(at)
        at = entry(node & ~PAGE_OFFSET_MASK, PG_LEVEL_4K)
        return [*stores, (at, 0 if clear else l2.table.leaf(gpa, rights))]

    @typed(gpa=64, value=64)
    def l1_store(self, gpa: int, value: int) -> Access:
        """Let L1 store 64 bits; if they are a part of its nested page table, KVM follows."""
        done = self.access("w", gpa)
        self.l1_wrote(gpa, value, done.faults[-1] if done.faults else None)
        return done

    def l1_wrote(self, gpa: int, value: int, last: Taken | None) -> None:
        """Follow a store of L1's own, whose last fault was `last`: it may hit its nested page table.

        KVM reads that table through the host's mapping, the shared copy.
        """
        known = last is not None and emulated(last)
        if known or not self.private(gpa >> PAGE_SHIFT):
            self.stored(gpa, value, known)

    def l2_wrote(self, addr: int, value: int | None, last: Taken | None) -> None:
        """Follow a store of L2's, whose last fault was `last`: it may hit L1's nested page table.

        Where KVM emulates it, it sets the dirty bit that a fault would have set.
        """
        l2 = self._nested()
        gpa = addr
        if l2.paging:
            gpa = l2.table.walk(addr, PFERR_WRITE_MASK).gfn << PAGE_SHIFT | addr & PAGE_OFFSET_MASK
        leaf, _ = l2.shadow.find(addr >> PAGE_SHIFT)
        known = last is not None and emulated(last)
        if value is not None and (known or leaf is None or not leaf.private):
            self.stored(gpa, value, known)

    def stored(self, gpa: int, value: int, emulated: bool) -> None:
        """Follow a store to what may be L1's nested page table; `emulated`: KVM made it, and knows."""
        l2 = self._nested()
        l2.table.words[gpa & ~7] = value
        if emulated:
            l2.shadow.emulated_write(gpa)

    # --- scenarios ---

    @typed()
    def run(self, op: str) -> Access | int | tuple[Access | int | None, ...] | None:
        """Carry out one operation of a scenario, such as "attr 0x40000000 0x1000 private" or "r 0x40000000".

        Returns the access, or the result of a system call (0, bytes not done, or a negative errno); None for
        what does not concern memory; for two parties ("par") the result of each.  The second of them begins when the
        first is held where "sh dly" says, or is done.

        Raises InputError for an operation that is unknown or lacks a word.
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

    @typed()
    def run_party(self, act: str, address: str) -> int:
        """Let user space act on the page at an address: one of PARTY_OPS.  Returns 0 or a negative errno."""
        verb, *more = PARTY_OPS[act]
        done = self._run(verb, [address, hex(PAGE_SIZE), *more])
        assert isinstance(done, int)
        return done

    def _par(self, parties: str) -> tuple[Access | int | None, ...]:
        """Let two parties act: the second when the first is held (`sh dly`), or when it is done."""
        first, second = (part.split() for part in parties.split("|"))
        at, self.delay = self.delay, "done"

        def act(
            cpu: int, op: str, address: str, held: str, meanwhile: Callable[[], object]
        ) -> Access | int | None:
            if op in PARTY_OPS:
                return self.run_party(op, address)
            addr, rights = read_number(address), self._rights().get(op)
            if addr is None or rights is None:
                raise ValueError
            aside, self.cpu = self.cpu, cpu
            try:
                return self._access(op, rights, addr, held, meanwhile)
            finally:
                self.cpu = aside

        results: list[Access | int | None] = []

        def other() -> None:
            results.append(act(1, second[0], second[1], "done", lambda: None))

        mine = act(0, first[0], first[1], at, other)
        if not results:
            other()
        return mine, *results

    def _run(self, verb: str, words: list[str]) -> Access | int | tuple[Access | int | None, ...] | None:
        def number(n: int) -> int:
            if (found := read_number(words[n])) is None:
                raise ValueError
            return found

        def gfns(gpa: int, size: int) -> tuple[int, int]:
            return gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT

        if verb in ("r", "w", "x", "i", "l2map", "l2unmap"):
            self.leave_l2()
        match verb:
            case "w" if self.l2 and words[1:]:
                return self.l1_store(number(0), number(1))
            case "r" | "w" | "x" | "i":
                return self.access(verb, number(0))
            case "nest":
                return self.nest(words[:1] != ["np0"], words[:1] != ["noad"])
            case "l2map" | "l2unmap":
                clear = verb == "l2unmap"
                rights = next(iter(words[1 if clear else 2 :]), "")
                stores = self.l2_map(number(0), 0 if clear else number(1), rights, clear)
                faults = tuple(fault for each in stores for fault in each.faults)
                return Access(f"{verb} {' '.join(words)}", faults, stores[-1].exit)
            case "l2r" | "l2w" | "l2x" | "l2i":
                access = self.l2_access(verb[2], number(0))
                if verb in ("l2w", "l2i") and access.exit.reason in ("done", "mmio"):
                    last = access.faults[-1] if access.faults else None
                    self.l2_wrote(number(0), number(1) if verb == "l2w" and words[1:] else None, last)
                return access
            case "l2cr3":
                self._nested().cr3 = number(0) if number(0) != L1_CR3 else None
            case "run":
                return self.run_again() if self.l2 and self.l2.running else None
            case "l2leave":
                self._nested()
                self.leave_l2()
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
                    self.invalidate(replaced, replaced + 1)
            case "mprotro" | "mprotrw" | "unmap" | "zap":
                self.host.change(verb, *gfns(number(0), number(1)))
                self.invalidate(*gfns(number(0), number(1)))
            case "punch":
                start, end = gfns(number(1), number(2))
                base = self.slots[number(0)].base_gfn
                self.invalidate(base + start, base + end, self.private)
            case "closegmem":
                slot = self.slots[number(0)]
                self.invalidate(slot.base_gfn, slot.end_gfn, self.private)
                self.gmem_closed.add(slot.id)
            case "cleardirty":
                slot = self.slots[number(0)]
                self.write_protect(slot.base_gfn, slot.end_gfn)
            case "ioeventfd":
                self.ioeventfds[number(0)] = number(1)
            case "pde":
                region = number(0) >> PDE_SHIFT
                self.pdes[region] = region << PDE_SHIFT | number(1) & ~PDE_ADDRESS
            case "efer" | "smap":
                self.nx = number(0) & EFER_NX != 0 if verb == "efer" else self.nx
                if not self.mmu.direct:  # another kind of shadow pages; kvm_mmu_sync_roots() clears the cache
                    self.clear()
                    self.cache = self.cache._replace(gva=0)
            case "sh" if words[0] == "inj":
                set_, bits, addr, count = (number(n) for n in range(2, 6))
                self.armed.append((words[1], set_, bits, addr, count))
            case "sh" if words[0] == "dly":
                self.delay = HELD_AT[number(1)] if number(2) == 0 and number(4) else "done"
            case "par":
                return self._par(" ".join(words))
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


def emulated(taken: Taken) -> bool:
    """Say whether KVM's emulator was asked to carry the access out."""
    return taken.outcome is not None and taken.outcome.emulation.called


def _ended(taken: Taken, kind: str) -> Exit | None:
    """Say how an access ended with this fault; None: the guest tries again."""
    if taken.ret < 0:
        return Exit("memory-fault" if taken.exit.exit_reason else "error", -taken.ret, taken.exit)
    if taken.ret == 0:
        return Exit("internal-error" if kind == "x" else "mmio")
    if taken.l1_exit:
        return Exit("l1", l1_exit=taken.l1_exit)
    by_kvm = emulated(taken)
    refused = taken.handler is not None and taken.handler.refused
    fast = taken.source is not None and taken.source.fast_mmio
    return Exit("done") if by_kvm or fast or refused else None
