# SPDX-License-Identifier: GPL-2.0-only
"""One case for every engine: a fault's inputs as numbers or as solver terms, and what each revision makes of it.

A claim is a function of a `Case`.  Given solver terms it speaks of all states at once; given numbers, of one.
The columns are those of the tables (`kvm_pf.run.tables`), and a few more for the ways into the path that have no
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple, get_type_hints

from kvm_pf.bits import PFERR_IMPLICIT_ACCESS, PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, U64_MASK, describe
from kvm_pf.exits import KIND_TDX, SEV_SNP, SOURCE_WARN_NAMES, AsyncPf, PreFault, Retry
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
from kvm_pf.run.inputs import limits
from kvm_pf.run.ranges import Span
from kvm_pf.run.tables import (
    CASE_INPUTS,
    CASE_OUTPUTS,
    FAULTIN_INPUTS,
    FAULTIN_OUTPUTS,
    MODE_COLUMNS,
    MODES,
    SLOT_GMEM_ONLY,
    SLOT_GMEM_ONLY_INVALID,
    SOURCE_INPUTS,
    SOURCE_OUTPUTS,
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

# The handler's answers go by name, for their numbers changed with 6.12.
ANSWERS = ("CONTINUE", "RETRY", "EMULATE", "INVALID", "FIXED", "SPURIOUS", "WRITE_PROTECTED")

_ARGUMENTS = ("error_code", "cr2_or_gpa", "insn_len")
_STATE = tuple(c for c in CASE_INPUTS if c.column not in _ARGUMENTS)

READY_INPUTS = (
    Input("put_off_code", "u64", 0, "error code of the fault that was put off"),
    Input("direct_map", "bool", 1, "the MMU was direct then"),
    Input("wakeup_all", "bool", 0, "no page: everybody is woken"),
    Input("reload_ret", "int", 0, "kvm_mmu_reload()'s result"),
    Input("same_cr3", "bool", 1, "the guest's page-table root is still the same"),
)
AHEAD_INPUTS = (
    Input("size", "u64", 0x1000, "bytes to map ahead"),
    Input("allowed", "bool", 1, "kvm->arch.pre_fault_allowed"),
    Input("level", "int", 1, "level at which the page comes to be mapped", span=(1, 3)),
)

_HANDLED = tuple(o for o in CASE_OUTPUTS if o.path.startswith("handled."))
_READY_OUTPUTS = (
    Output("ready_warns", "warns", "warns", labels=SOURCE_WARN_NAMES),
    *_HANDLED,
    Output("attr_lookups", "handled.lookups.count", "int"),
    Output("attr_gfn", "handled.lookups.gfn", "u64", "handled.lookups.count"),
    *(
        Output(f"{column}_{name}", f"{path}stats.{name}", "int")
        for column, path in (("st", "handled."), ("ready", ""))
        for name in ("taken", "fixed", "emulate", "spurious")
    ),
)
_AHEAD_OUTPUTS = (
    Output("ret", "ret", "int"),
    Output("warns", "warns", "warns", labels=SOURCE_WARN_NAMES),
    Output("calls", "calls", "int"),
    Output("mmu_addr", "addr", "u64", "calls"),
    Output("mmu_error_code", "error_code", "u64", "calls"),
    *_HANDLED,
    Output("attr_lookups", "lookups.count", "int"),
)


class Way(NamedTuple):
    """A way into the path: its inputs, its outputs, the method of `Case` that takes it, the functions it calls."""

    name: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    take: str
    calls: tuple[str | Callable[..., Any], ...]


WAYS = {
    way.name: way
    for way in (
        Way(
            "kvm_mmu_page_fault",
            "a fault",
            CASE_INPUTS,
            CASE_OUTPUTS[1:],
            "fault",
            (tables.case_vcpu, "kvm_mmu_page_fault"),
        ),
        Way("source", "an exit", SOURCE_INPUTS, SOURCE_OUTPUTS, "exit", (tables.source_event, "source")),
        Way(
            "kvm_arch_async_page_ready",
            "a page that became ready",
            (CASE_INPUTS[1], *_STATE, *READY_INPUTS),
            _READY_OUTPUTS,
            "page_ready",
            (tables.case_vcpu, "kvm_arch_async_page_ready"),
        ),
        Way(
            "kvm_arch_vcpu_pre_fault_memory",
            "a page mapped ahead",
            (CASE_INPUTS[1], *_STATE, *AHEAD_INPUTS, READY_INPUTS[3]),
            _AHEAD_OUTPUTS,
            "pre_fault",
            (tables.case_vcpu, "kvm_arch_vcpu_pre_fault_memory"),
        ),
        Way(
            "kvm_faultin_pfn",
            "a frame looked for",
            FAULTIN_INPUTS,
            FAULTIN_OUTPUTS,
            "fault_in",
            (tables.faultin_row,),
        ),
    )
}
"""The ways into the path, by the name of the function at the door."""

COLUMNS = {column.column: column for way in reversed(WAYS.values()) for column in way.inputs}
"""Every input by name; one that several ways have means the same in all of them."""


def common_outputs(way: str, a: str | Revision, b: str | Revision) -> list[Output]:
    """The outputs of a way that both revisions have."""
    absent = {"until 7.3" if "v7_3" in get(revision).lineage else "from 7.3" for revision in (a, b)}
    return [output for output in WAYS[way].outputs if output.revisions not in absent]


CODES = ("error_code", "info", "put_off_code")
"""The inputs whose bits a small witness has few of."""


@cache
def answers(revision: Revision) -> dict[str, int]:
    """The handler's answers that `revision` knows, by name, with its numbers."""
    known = {**logic_names(), **revision.names}
    return {name: known[f"RET_PF_{name}"] for name in ANSWERS if f"RET_PF_{name}" in known}


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
    return ", ".join(f"{name}={spell(name, value)}" for name, value in unlike.items()) or "nothing unusual"


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

    def vcpu(self, revision: str | Revision) -> Any:
        """The state that the inputs describe; the handler's answer with the revision's number."""
        revision = get(revision)
        numbers = answers(revision)
        answer = as_int(self.pf_ret) if self.values is None else self.pf_ret
        for name, number in numbers.items():
            answer = choose(self.pf_ret == ANSWERS.index(name), number, answer)
        state = {c.column: getattr(self, c.column) for c in _STATE}
        return self.step(tables.case_vcpu, revision)(**{**state, "pf_ret": answer})

    def fault(self, revision: str | Revision) -> Any:
        """kvm_mmu_page_fault()'s Outcome."""
        revision = get(revision)

        def run() -> Any:
            function = self.step("kvm_mmu_page_fault", revision)
            return function(self.vcpu(revision), self.cr2_or_gpa, self.error_code, self.insn_len)

        return self._once("kvm_mmu_page_fault", revision, run)

    def exit(self, revision: str | Revision) -> Any:
        """The SourceOutcome of an exit's handler."""
        revision = get(revision)

        def run() -> Any:
            columns = (getattr(self, c.column) for c in SOURCE_INPUTS)
            return self.step("source", revision)(self.step(tables.source_event, revision)(*columns))

        return self._once("source", revision, run)

    def page_ready(self, revision: str | Revision) -> Any:
        """kvm_arch_async_page_ready()'s AsyncReady."""
        revision = get(revision)

        def run() -> Any:
            work = AsyncPf(
                self.cr2_or_gpa,
                self.put_off_code,
                self.direct_map,
                self.wakeup_all,
                self.reload_ret,
                self.same_cr3,
            )
            return self.step("kvm_arch_async_page_ready", revision)(self.vcpu(revision), work)

        return self._once("kvm_arch_async_page_ready", revision, run)

    def pre_fault(self, revision: str | Revision) -> Any:
        """kvm_arch_vcpu_pre_fault_memory()'s PreFaulted."""
        revision = get(revision)

        def run() -> Any:
            request = PreFault(self.cr2_or_gpa, self.size, self.allowed, self.reload_ret, self.level, Retry())
            return self.step("kvm_arch_vcpu_pre_fault_memory", revision)(self.vcpu(revision), request)

        return self._once("kvm_arch_vcpu_pre_fault_memory", revision, run)

    def fault_in(self, revision: str | Revision) -> Any:
        """kvm_faultin_pfn()'s Faultin, of the fault and the memory that the fault-in columns describe."""
        revision = get(revision)

        def run() -> Any:
            return self.step(tables.faultin_row, revision)(*(getattr(self, c.column) for c in FAULTIN_INPUTS))

        return self._once("kvm_faultin_pfn", revision, run)

    def take(self, way: str, revision: str | Revision) -> Any:
        """The result of one of the WAYS."""
        return getattr(self, WAYS[way].take)(revision)

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
        return (reached != also) | (reached & (value != other))

    def cell(self, way: str, output: Output, revision: Revision) -> tuple[Any, Any]:
        """Whether an output is reached, and its value; a handler's answer as its place in ANSWERS."""
        result = self.take(way, revision)
        value = attrgetter(output.path)(result)
        if output.column == "mmio_ret":
            for name, number in answers(revision).items():
                value = choose(attrgetter(output.path)(result) == number, ANSWERS.index(name), value)
        if output.kind == "u64":  # which holds what is left modulo 2^64
            value = value & U64_MASK
        return attrgetter(output.reached)(result) != 0 if output.reached else True, value

    def written(self, way: str, output: Output, revision: Revision) -> str:
        """Write an output of a state for people: warnings and labels by name, "–" for what is not reached."""
        reached, value = self.cell(way, output, revision)
        if not reached:
            return "–"
        if output.kind == "warns":
            return "|".join(name for n, name in enumerate(output.labels) if value >> n & 1) or "none"
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
    return " ".join([*map(revision.digest, WAYS[way].calls), repr(answers(revision))])


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
    `virt/kvm/kvm_main.c`, kvm_supported_mem_attributes(), of the revisions.
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
        "TDX alone has a shared bit",
        is_one_of(c.direct_bits, (0, 1 << 35, 1 << 39)) & implies(c.direct_bits != 0, tdx),
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
        "TDX alone has a shared bit",
        is_one_of(c.direct_bits, (0, 1 << 35, 1 << 39)) & implies(c.direct_bits != 0, tdx),
    )


def _fault_ins(c: Case, revision: Revision) -> Iterator[tuple[str, Any]]:
    v7_3 = revision.last_vm_type >= KVM_X86_TDX_VM
    gmem_only = is_one_of(c.slot_kind, (SLOT_GMEM_ONLY, SLOT_GMEM_ONLY_INVALID))
    yield "slots with guest_memfd alone came with 7.3", no(gmem_only) | v7_3
    yield "a private fault needs private memory", implies(c.is_private, c.cfg_private_mem)
    yield "private memory needs the TDP MMU", implies(c.is_private | (c.attrs != 0), c.is_tdp | c.nested)
    yield "L2's own tables are L2's", implies(c.nested, c.guest_mode & no(c.is_tdp))
    yield "the address is the gfn's", implies(c.is_tdp, c.gfn == c.addr >> PAGE_SHIFT & GFN_MASK)
    yield "TDX alone has a shared bit", is_one_of(c.direct_bits, (0, *[1 << 35, 1 << 39] * v7_3))
