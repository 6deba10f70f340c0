# SPDX-License-Identifier: GPL-2.0-only
"""One case for every engine: a fault's inputs as numbers or as solver terms, and what each revision makes of it.

A claim is a function of a `Case`.  Given solver terms it speaks of all states at once; given numbers, of one.
The columns are those of the ways into the path (`kvm_pf.run.tables.ENTRY_POINTS`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, get_type_hints

from kvm_pf.bits import PFERR_IMPLICIT_ACCESS, PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, U64_MASK, describe
from kvm_pf.common.text import bit_names
from kvm_pf.exits import KIND_TDX, SEV_SNP
from kvm_pf.mmio import MMIO_TDX
from kvm_pf.proof.terms import (
    Summary,
    Variable,
    all_of,
    any_bool,
    any_int,
    as_int,
    bool_term,
    choose,
    implies,
    new_solver,
    no,
    one_of,
    satisfiable,
    smallest,
    some,
)
from kvm_pf.revisions import Revision, get, logic_names
from kvm_pf.run import ranges, tables
from kvm_pf.run.inputs import ANSWERS, answers, cell, limits, outputs
from kvm_pf.run.ranges import Span
from kvm_pf.run.tables import (
    ENTRY_POINTS,
    MODE_COLUMNS,
    MODES,
    SLOT_GMEM_ONLY,
    SLOT_GMEM_ONLY_INVALID,
    SLOT_USER_GMEM_RO,
    VM_TYPES,
    Input,
    Output,
)
from kvm_pf.run.watch import Record, Watcher
from kvm_pf.state import (
    GFN_MASK,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_SNP_VM,
    KVM_X86_SW_PROTECTED_VM,
    KVM_X86_TDX_VM,
    PAGE_SHIFT,
)

WAYS = {entry.function: entry for entry in ENTRY_POINTS.values()}
"""The ways into the path, by the name of the function that is called."""

COLUMNS = {column.column: column for way in reversed(WAYS.values()) for column in way.inputs}
"""Every input by name; one that several ways have means the same in all of them."""


def common_outputs(way: str, a: str | Revision, b: str | Revision) -> list[Output]:
    """The outputs of a way that both revisions have."""
    kind = WAYS[way].kind
    also = outputs(kind, b)
    return [output for output in outputs(kind, a) if output in also]


CODES = ("error_code", "info", "put_off_code")
"""The inputs whose bits a small witness has few of."""


def default(column: Input) -> int:
    """The number of a column's default value."""
    if isinstance(column.default, int):
        return column.default
    words = column.labels or (ANSWERS if column.column == "pf_ret" else ())
    return words.index(column.default) if words else logic_names()[column.default]


def spell(name: str, value: int) -> str:
    """Write an input's value for people: codes as names of bits, words for numbers that have one."""
    column = COLUMNS.get(name)
    if name == "info" or column is None:
        return hex(value)
    if name in ("error_code", "put_off_code"):
        return describe(value)
    if name == "pf_ret":
        return ANSWERS[value] if value >= 0 else str(value)
    if name == "vm_type":
        return VM_TYPES[value]
    return column.labels[value] if column.labels else hex(value) if column.kind == "u64" else str(value)


def spelled(state: Mapping[str, int]) -> str:
    """Write the inputs of a state that are unlike their defaults."""
    unlike = {n: v for n, v in state.items() if v != (default(COLUMNS[n]) if n in COLUMNS else 0)}
    told = ", ".join(f"{name}={spell(name, value)}" for name, value in unlike.items())
    return told or "all inputs at their defaults"


class Case:
    """One state of the world, or all of them; its inputs are attributes.

    `values` gives inputs as unsigned or signed numbers by column name, others have their defaults; without
    `values` every input is a solver term of its own.  The handler's answer `pf_ret` is its place in ANSWERS, or a
    negative errno.  With `watch`, runs are recorded in `records`.
    """

    def __init__(self, values: Mapping[str, int] | None = None, watch: bool = False) -> None:
        self.values = values
        self.watch = watch
        self.records: list[Record] = []
        self.premises: list[Any] = []
        self.terms: dict[str, Any] = {}
        self._taken: dict[tuple[str, str], Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(f"a case has no {name!r}")
        if name not in self.terms:
            self.terms[name] = self._plain(name) if self.values is not None else self._any(name)
        return self.terms[name]

    def _plain(self, name: str) -> Any:
        assert self.values is not None
        value = self.values.get(name, default(COLUMNS[name]))
        return bool(value) if COLUMNS[name].kind == "bool" else value

    @staticmethod
    def _any(name: str) -> Any:
        column = COLUMNS[name]
        return any_bool(name) if column.kind == "bool" else any_int(name, Span(*limits(column)[:2]))

    def any(self, kind: type[Any], name: str) -> Any:
        """An input beside the columns: a record of which every field is an input `name.field`, 0 by default."""
        return kind(
            **{field: self._free(hint, f"{name}.{field}") for field, hint in get_type_hints(kind).items()}
        )

    def _free(self, kind: type[Any], name: str) -> Any:
        if hasattr(kind, "_fields"):
            return self.any(kind, name)
        if name not in self.terms:
            if self.values is not None:
                self.terms[name] = kind(self.values.get(name, 0))
            else:
                self.terms[name] = any_bool(name) if kind is bool else any_int(name)
        return self.terms[name]

    # What the revisions make of it

    def step(self, name: str | Callable[..., Any], revision: str | Revision) -> Any:
        """The function `name` as `revision` has it, fit for this case's inputs."""
        revision = get(revision)
        if self.watch:
            watcher = Watcher(revision)
            watcher.records = self.records
            return revision.link(name, watcher)
        return revision.link(name) if self.values is not None else _summary(revision, name)

    def given(self, premise: Any, conclusion: Any) -> Any:
        """If `premise`, then `conclusion`; the premise is kept, for a proof asks whether there is such a state."""
        self.premises.append(premise)
        return implies(premise, conclusion)

    def _once(self, way: str, revision: Revision, run: Callable[[], Any]) -> Any:
        key = way, fingerprint(way, revision)
        if key not in self._taken or self.watch:
            self._taken[key] = run()
        return self._taken[key]

    def _given(self, columns: Iterable[Input], revision: Revision) -> Iterator[Any]:
        """The columns' values; the handler's answer with the revision's number."""
        for column in columns:
            value = getattr(self, column.column)
            if column.column == "pf_ret":
                number = as_int(value) if self.values is None else value
                for name, its in answers(revision).items():
                    number = choose(value == ANSWERS.index(name), its, number)
                value = number
            yield value

    def vcpu(self, revision: str | Revision) -> Any:
        """The state that the inputs describe; the handler's answer with the revision's number."""
        revision = get(revision)
        code = tables.case_vcpu.__code__
        columns = [COLUMNS[name] for name in code.co_varnames[: code.co_argcount]]
        return self.step(tables.case_vcpu, revision)(*self._given(columns, revision))

    def take(self, way: str, revision: str | Revision) -> Any:
        """The result of one of the WAYS."""
        revision, entry = get(revision), WAYS[way]

        def run() -> Any:
            return self.step(entry.row, revision)(*self._given(entry.inputs, revision))

        return self._once(way, revision, run)

    def fault(self, revision: str | Revision) -> Any:
        """kvm_mmu_page_fault()'s Outcome."""
        return self.take("kvm_mmu_page_fault", revision)

    def exit(self, revision: str | Revision) -> Any:
        """The SourceOutcome of an exit's handler."""
        return self.take("source", revision)

    def page_ready(self, revision: str | Revision) -> Any:
        """kvm_arch_async_page_ready()'s AsyncReady."""
        return self.take("kvm_arch_async_page_ready", revision)

    def pre_fault(self, revision: str | Revision) -> Any:
        """kvm_arch_vcpu_pre_fault_memory()'s PreFaulted."""
        return self.take("kvm_arch_vcpu_pre_fault_memory", revision)

    def fault_in(self, revision: str | Revision) -> Any:
        """kvm_faultin_pfn()'s Faultin, of the fault and the memory that the fault-in columns describe."""
        return self.take("kvm_faultin_pfn", revision)

    # All states, and those that can exist

    @property
    def bounds(self) -> list[Any]:
        """What every input keeps to: the range of its column."""
        kept = []
        for name, term in self.terms.items():
            column = COLUMNS.get(name)
            if column and column.kind != "bool" and limits(column)[:2] != ranges.U64:
                low, high, _ = limits(column)
                kept.append((term >= low) & (term <= (len(ANSWERS) - 1 if name == "pf_ret" else high)))
        return kept

    def differs(self, way: str, output: Output, a: str | Revision, b: str | Revision) -> Any:
        """Whether an output of a way is not the same in two revisions: reached in one alone, or another value."""
        (reached, value), (also, other) = (self.cell(way, output, get(r)) for r in (a, b))
        apart = value - other & U64_MASK != 0 if output.kind in ("int", "long") else value != other
        return (reached != also) | (reached & apart)

    def cell(self, way: str, output: Output, revision: Revision) -> tuple[Any, Any]:
        """Whether an output is reached, and its value; a handler's answer as its place in ANSWERS."""
        result = self.take(way, revision)
        reached, value = cell(output, result, partial(getattr, self), partial(self.step, revision=revision))
        if output.kind == "u64":  # which holds what is left modulo 2^64
            value = value & U64_MASK
        if output.column != "mmio_ret":
            return reached, value
        place = value
        for name, number in answers(revision).items():
            place = choose(value == number, ANSWERS.index(name), place)
        return reached, place

    def written(self, way: str, output: Output, revision: Revision) -> str:
        """Write an output of a state for people: warnings and labels by name, "–" for what is not reached."""
        reached, value = self.cell(way, output, revision)
        if not reached:
            return "–"
        if output.kind == "warns":
            return bit_names(value, output.labels) or "none"
        if output.kind == "label":
            return str(output.labels[value])
        return hex(value) if output.kind == "u64" else str(int(value))

    def has_meaning(self, revision: str | Revision) -> Any:
        """Whether the inputs mean something in `revision`: the handler's answer, and the MMIO SPTEs' format."""
        known = answers(get(revision))
        answer = one_of(self.pf_ret == ANSWERS.index(name) for name in known) | (self.pf_ret < 0)
        return answer & ((self.mmio_cfg != MMIO_TDX) | (get(revision).last_vm_type >= KVM_X86_TDX_VM))

    def reachable(self, revision: str | Revision, way: str = "kvm_mmu_page_fault") -> Any:
        """Whether a fault that comes by `way` can meet such a state in `revision`."""
        return all_of(truth for _, truth in reachable(self, get(revision), way))

    def possible(self, condition: Any) -> bool:
        """Whether there is a state in which `condition` holds.  Raises Unknown if the solver gives up."""
        return satisfiable(new_solver(*(bool_term(truth) for truth in [condition, *self.bounds])))

    def smallest(
        self, condition: Any, columns: Sequence[str] | None = None, shrink: bool = True
    ) -> dict[str, int] | None:
        """The smallest state in which `condition` holds, as numbers by name; None if there is none.

        Without `shrink`, it is whichever the solver finds first, which is quicker.
        """
        names = list(self.terms) if columns is None else columns
        variables = {
            name: Variable(self.terms[name], default(COLUMNS[name]) if name in COLUMNS else 0, name in CODES)
            for name in sorted(names, key=_place)
        }
        found = (smallest if shrink else some)(all_of([condition, *self.bounds]), variables)
        return None if found is None else {name: _signed(name, value) for name, value in found.items()}


def _place(name: str) -> tuple[int, str]:
    names = list(COLUMNS)
    return (names.index(name), "") if name in COLUMNS else (len(names), name)


def _signed(name: str, value: int) -> int:
    unsigned = name in COLUMNS and COLUMNS[name].kind == "u64"
    return value if unsigned or value < 1 << 63 else value - (1 << 64)


@cache
def fingerprint(way: str, revision: Revision) -> str:
    """What a way does in `revision`, all the way down: two revisions that share it cannot differ there."""
    return " ".join([revision.digest(WAYS[way].row), repr(dict(answers(revision)))])


@cache
def _summary(revision: Revision, name: str | Callable[..., Any]) -> Any:
    """The function that answers with all paths at once."""
    return revision.link(name, Summary)


# --- states that can exist ---


def is_one_of(value: Any, numbers: Sequence[int]) -> Any:
    """Whether a value is one of the numbers."""
    return one_of(value == number for number in numbers)


def reachable(case: Case, revision: Revision, way: str = "kvm_mmu_page_fault") -> Iterator[tuple[str, Any]]:
    """Yield what is true of every state that a fault can meet in `revision`: a sentence, and whether it holds.

    Nothing is said of page-table entries, generations, caches and answers: any of them can be there.

    Source: Linux `arch/x86/kvm/x86.c`, kvm_is_vm_type_supported(), `arch/x86/kvm/Kconfig`,
    `virt/kvm/kvm_main.c`, kvm_supported_mem_attributes(), of the revisions.  Private memory needs the TDP MMU:
    Linux `arch/x86/kvm/x86.c`, commit `a1176ef5c92a` ("KVM: x86/mmu: Restrict KVM_SW_PROTECTED_VM to the TDP
    MMU") (v6.8).  No read-only slot with guest_memfd: Linux `virt/kvm/kvm_main.c`, commit `e563592224e0` ("KVM:
    Make KVM_MEM_GUEST_MEMFD mutually exclusive with KVM_MEM_READONLY") (v6.8).
    """
    if way == "source":
        yield from _exits(case, revision)
    elif way == "kvm_faultin_pfn":
        yield from _attributes(case)
        yield from _fault_ins(case, revision)
    else:
        yield from _vms(case, revision)
        yield from _attributes(case)
        if way == "kvm_mmu_page_fault":
            yield from _callers(case, revision)


def _vms(c: Case, revision: Revision) -> Iterator[tuple[str, Any]]:
    """The VMs that there are, and the kernels that run them."""
    last = revision.last_vm_type
    private_types = [t for t in (KVM_X86_SW_PROTECTED_VM, KVM_X86_SNP_VM, KVM_X86_TDX_VM) if t <= last]
    has_private, tdx = is_one_of(c.vm_type, private_types), c.vm_type == KVM_X86_TDX_VM
    yield f"the VM is of type 0 to {last}", is_one_of(c.vm_type, range(last + 1))
    sw_protected = c.vm_type == KVM_X86_SW_PROTECTED_VM
    yield "software-protected VMs need their option", implies(sw_protected, c.cfg_sw_protected)
    if last >= KVM_X86_SNP_VM:
        yield (
            "options and VMs bring private memory",
            implies(c.cfg_sw_protected | has_private, c.cfg_private_mem),
        )
    else:
        yield "that option alone brings private memory", c.cfg_sw_protected == c.cfg_private_mem
    yield "only VMs with private memory have attributes", implies(c.attrs != 0, has_private)
    modes = (
        all_of(getattr(c, name) == bool(value) for name, value in zip(MODE_COLUMNS, mode, strict=True))
        for mode in MODES.values()
    )
    yield "the paging mode is one of six", one_of(modes)
    yield "private memory needs the TDP MMU", implies(has_private, c.is_tdp | c.nested)
    yield "the walk ends at a level, or saw nothing", (c.walk_leaf != 0) & (c.walk_leaf <= c.walk_root)
    yield "the format of MMIO SPTEs is the VM's", (c.mmio_cfg == MMIO_TDX) == tdx
    yield (
        "TDX alone has a shared bit, and has it before a vCPU can run",
        is_one_of(c.direct_bits, (0, 1 << 35, 1 << 39)) & ((c.direct_bits != 0) == tdx),
    )


def _attributes(c: Case) -> Iterator[tuple[str, Any]]:
    yield "private is the only attribute", is_one_of(c.attrs, (0, KVM_MEMORY_ATTRIBUTE_PRIVATE))
    yield "attributes need private memory", implies(c.attrs != 0, c.cfg_private_mem)


def _callers(c: Case, revision: Revision) -> Iterator[tuple[str, Any]]:
    """What callers hand in: anything, unless they look at it themselves."""
    if revision.step("npf_synthetic") is logic_names()["npf_synthetic"]:
        return
    yield "callers drop bit 48", c.error_code & PFERR_IMPLICIT_ACCESS == 0
    private = c.error_code & PFERR_PRIVATE_ACCESS != 0
    snp, tdx = c.vm_type == KVM_X86_SNP_VM, c.vm_type == KVM_X86_TDX_VM
    last = revision.last_vm_type
    setters = (snp & (last >= KVM_X86_SNP_VM)) | (tdx & (last >= KVM_X86_TDX_VM))
    yield "callers set bit 49 for SNP and TDX alone, as far as there are such", implies(private, setters)
    if last >= KVM_X86_TDX_VM:
        gpa = c.step("vt_is_tdx_private_gpa", revision)(c.direct_bits, c.cr2_or_gpa)
        yield "for TDX the address says private", implies(tdx, private == gpa)
        yield "a trust domain has no reserved faults", implies(tdx, c.error_code & PFERR_RSVD_MASK == 0)


def _exits(c: Case, revision: Revision) -> Iterator[tuple[str, Any]]:
    tdx = c.kind == KIND_TDX
    yield "TDX came with 7.3", no(tdx) | (revision.last_vm_type >= KVM_X86_TDX_VM)
    yield (
        "SNP came with 6.12",
        no(c.snp_guest | (c.sev_kind == SEV_SNP)) | (revision.last_vm_type >= KVM_X86_SNP_VM),
    )
    yield (
        "TDX alone has a shared bit, and has it before a vCPU can run",
        is_one_of(c.direct_bits, (0, 1 << 35, 1 << 39)) & ((c.direct_bits != 0) == tdx),
    )


def _fault_ins(c: Case, revision: Revision) -> Iterator[tuple[str, Any]]:
    v7_3 = revision.last_vm_type >= KVM_X86_TDX_VM
    gmem_only = is_one_of(c.slot_kind, (SLOT_GMEM_ONLY, SLOT_GMEM_ONLY_INVALID))
    yield "of these revisions, 7.3 alone has slots with guest_memfd alone", no(gmem_only) | v7_3
    yield "a slot with guest_memfd is not read-only", c.slot_kind != SLOT_USER_GMEM_RO
    yield "a private fault needs private memory", implies(c.is_private, c.cfg_private_mem)
    yield "private memory needs the TDP MMU", implies(c.is_private | (c.attrs != 0), c.is_tdp | c.nested)
    yield "L2's own tables are L2's", implies(c.nested, c.guest_mode & no(c.is_tdp))
    yield "TDX alone has a shared bit", is_one_of(c.direct_bits, (0, *[1 << 35, 1 << 39] * v7_3))
    trusted, page = c.direct_bits != 0, c.addr >> PAGE_SHIFT
    yield (
        "the gfn is the address's, without the shared bit",
        implies(c.is_tdp, c.gfn == page & GFN_MASK & ~c.direct_bits),
    )
    yield (
        "a trust domain has two-dimensional paging, and no guest of its own",
        implies(trusted, c.is_tdp & no(c.guest_mode)),
    )
    yield "for TDX the address says private", implies(trusted, c.is_private == (page & c.direct_bits == 0))
