# SPDX-License-Identifier: GPL-2.0-only
"""Watch a fault: one record for each step, and `explain`, which prints them for people.

The records come from the run itself: every function of the path is wrapped when it is linked, and notes what
it was given and what it returned.  The sentences below only put those values into words.
"""

from __future__ import annotations

import csv
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any, NamedTuple

from kvm_pf.bits import EPT, PFERR, PFERR_RSVD_MASK, PFERR_SYNTHETIC_MASK, Bit, describe, encode
from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.common.text import bit_names
from kvm_pf.exits import SOURCE_WARN_NAMES, SourceOutcome
from kvm_pf.fault import NO_FAULT, no_mmio
from kvm_pf.mmio import MMIO_NPT, MMIO_TDX
from kvm_pf.revisions import Revision, get, logic_names, steps_of
from kvm_pf.run.inputs import answer, brief, case_state, case_values, row_values, run_row
from kvm_pf.run.tables import CASE_INPUTS, MODE_COLUMNS, MODES, SEV_KINDS, SOURCE_INPUTS, VM_TYPES
from kvm_pf.state import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_SW_PROTECTED_VM,
    NO_EMULATION,
    NO_LOOKUP,
    NO_STATS,
    NO_UNPROTECT,
    WARN_NAMES,
    Outcome,
)


@dataclass
class Record:
    """One step of one fault.

    `before` and `after` are the error code (u64) around the step, None where the step does not see it.
    `lines` are the ids of the patch's lines (see data/ledger) that the step stands for, if this revision uses
    the posted form of the step; `source` is where the step was read.
    """

    step: str
    depth: int
    given: dict[str, Any]
    revision: Revision = field(repr=False)
    result: Any = None
    before: int | None = None
    after: int | None = None
    why: str = ""
    source: str = ""
    lines: tuple[str, ...] = ()
    inner: list[Record] = field(default_factory=list)

    def answer(self, value: int) -> str:
        """Name an answer of the page-fault handler."""
        return answer(value, self.revision)

    def find(self, step: str) -> Record | None:
        """The first record of `step` in here, however deep."""
        for record in self.inner:
            found = record if record.step == step else record.find(step)
            if found:
                return found
        return None


WAYS = (
    "back to the guest",
    "on to the MMIO path",
    "on to the page-fault handler",
    "refused, an error to user space",
)
"""What each of `kvm_pf.entry.ROUTES` leads to."""


def warn_names(warns: int) -> str:
    """Name WARN_* bits, joined by "|"."""
    return bit_names(warns, WARN_NAMES)


# One sentence for each step, from what it was given and what it returned


def _why_sanitize(r: Record) -> str:
    code, warns = r.result
    if warns:
        return f"WARN: {describe(r.given['error_code'] & ~code)} came from outside; dropped"
    if r.given["error_code"] != code:
        return f"now {describe(code)}"
    return "passed as it is" if code & PFERR_SYNTHETIC_MASK else "nothing to drop"


def _why_mark_private(r: Record) -> str:
    vm, code = r.given["vm"], r.given["error_code"]
    after, lookups = r.result
    if lookups.count:
        looked = r.find("kvm_mem_is_private")
        private = looked is not None and looked.result[0]
        marked = f": {describe(after & ~code)} set" if after != code else ""
        return f"gfn {lookups.gfn:#x} is {'private' if private else 'shared'}{marked}"
    if not r.lines:
        return "no look-up"  # another form of the step, with reasons of its own
    reasons = {
        "CONFIG_KVM_SW_PROTECTED_VM is off": not vm.cfg_sw_protected,
        "a reserved fault": code & PFERR_RSVD_MASK != 0,
        f"the VM is {VM_TYPES[vm.vm_type]}, not sw-protected": vm.vm_type != KVM_X86_SW_PROTECTED_VM,
    }
    return "no look-up" + "".join(f"; {text}" for text, true in reasons.items() if true)


def _why_reserved(r: Record) -> str:
    to, warns = r.result
    return f"{'WARN: private and reserved; ' if warns else ''}{WAYS[to]}"


def _why_route(r: Record) -> str:
    return WAYS[r.result.to]


def _why_mmio(r: Record) -> str:
    mmio = r.result
    if mmio.warns:
        return "WARN: a page-table entry has reserved bits; -EINVAL"
    if mmio.traced:
        return f"EMULATE: the MMIO SPTE of gfn {mmio.gfn:#x}, generation {mmio.spte_gen:#x}, is current"
    if mmio.checked:
        return f"INVALID: the MMIO SPTE is stale (generation {mmio.spte_gen:#x}, now {mmio.kvm_gen:#x})"
    cached = r.find("mmio_info_in_cache")
    if cached and cached.result:
        return "EMULATE: the vCPU remembers this address as MMIO"
    return r.answer(mmio.ret) + ": " + ("no MMIO SPTE there" if mmio.ret == 1 else "slots are being updated")


def _why_is_private(r: Record) -> str:
    private, lookups = r.result
    how = f"attribute of gfn {lookups.gfn:#x}" if lookups.count else f"error code {describe(r.given['err'])}"
    return f"{'private' if private else 'shared'}, by {how}"


def _why_new_fault(r: Record) -> str:
    f = r.result
    kind = "write" if f.write else "fetch" if f.exec else "read"
    slot = "in a slot" if f.slot else "no slot" if r.given["vcpu"].mmu.direct else "slot not known yet"
    return f"gfn {f.gfn:#x}, {kind}, is_private={int(f.is_private)}, rsvd={int(f.rsvd)}, {slot}"


def _why_do_page_fault(r: Record) -> str:
    h = r.result
    if h.exit.exit_reason:
        return f"EMULATE on private memory is refused: exit {h.exit.exit_reason}, flags {h.exit.flags:#x}, -EFAULT"
    return r.answer(h.ret)


def _why_after(r: Record) -> str:
    a = r.result
    done = f"unprotect {a.unprotect.arg:#x}; " if a.unprotect.called else ""
    if a.emulation.called:
        return f"{done}emulate with type {a.emulation.emulation_type:#x}; returns {a.ret}"
    return f"{done}returns {a.ret}"


def _why_handler_error_code(r: Record) -> str:
    lost = r.given["error_code"] & ~r.result
    return f"cut: {describe(lost)} lost" if lost else "all 64 bits"


def _why_page_fault(r: Record) -> str:
    wrote = "; a write to a shadowed page table" if r.result[1] else ""
    return f"the page-fault handler answers {r.answer(r.result[0])}{wrote}"


def _why_whole(r: Record) -> str:
    o: Outcome = r.result
    then = "error to user space" if o.ret < 0 else "exit to user space" if o.ret == 0 else "resume the guest"
    return f"returns {o.ret}: {then}" + (f"; warned: {warn_names(o.warns)}" if o.warns else "")


def _why_handler(r: Record) -> str:
    out: SourceOutcome = r.result
    warned = bit_names(out.warns, SOURCE_WARN_NAMES)
    warned = f"WARN {warned}; " if warned else ""
    if not out.mmu.called:
        done = "the fast-MMIO bus takes it" if out.fast_mmio else "settled here"
        return f"{warned}{done}; returns {out.ret}"
    got, made = r.given["event"].info, out.mmu.error_code
    table = next(source.table for source in SOURCES.values() if source.handler == r.step)
    if table is EPT:
        return f"{warned}{describe(got, EPT)} becomes {describe(made)}"
    if r.step == "handle_ept_misconfig":
        return f"{warned}there is no code; {describe(made)} alone is handed in"
    changed = [f"{describe(b)} {how}" for b, how in ((made & ~got, "added"), (got & ~made, "dropped")) if b]
    return warned + (", ".join(changed) or "handed on as it is")


class Source(NamedTuple):
    """Where a code comes from: the exit's handler, what it gets, and the table that names its bits."""

    handler: str
    gets: str
    table: tuple[Bit, ...]


SOURCES = {
    "npf": Source("npf_interception", "EXITINFO1", PFERR),
    "ept": Source("handle_ept_violation", "exit qualification", EPT),
    "pf": Source("kvm_handle_page_fault", "#PF error code", PFERR),
    "tdx": Source("tdx_handle_ept_violation", "exit qualification", EPT),
    "misconfig": Source("handle_ept_misconfig", "", PFERR),
}
"""The exits that a fault can come through."""

KIND_NAMES = {"misconfig": "miscfg"}
"""What the sources tables call them, if otherwise; see `kvm_pf.run.tables.KINDS`."""


WHY: Mapping[str, Callable[[Record], str]] = {
    "route": _why_route,
    "sanitize": _why_sanitize,
    "root_is_valid": lambda r: (
        "there is a page table" if r.result else "WARN: no valid root; back to the guest"
    ),
    "mark_private": _why_mark_private,
    "kvm_mem_is_private": lambda r: f"gfn {r.given['gfn']:#x}: {'private' if r.result[0] else 'shared'}",
    "reserved_fault": _why_reserved,
    "handle_mmio_page_fault": _why_mmio,
    "mmio_info_in_cache": lambda r: "in the MMIO cache" if r.result else "not in the MMIO cache",
    "get_mmio_spte": lambda r: (
        f"lowest SPTE {r.result[0]:#x}" + ("; reserved bits on the way" if r.result[1] else "")
    ),
    "handler_error_code": _why_handler_error_code,
    "kvm_mmu_do_page_fault": _why_do_page_fault,
    "is_private": _why_is_private,
    "new_fault": _why_new_fault,
    "page_fault": _why_page_fault,
    "kvm_mmu_write_protect_fault": lambda r: r.answer(r.result[0]),
    "after_fault": _why_after,
    "emulate": lambda r: f"emulate at {r.result.addr:#x} with type {r.result.emulation_type:#x}",
    "kvm_mmu_page_fault": _why_whole,
}
"""The steps that are watched, and how each says what it did."""


_CODE_NAMES = ("error_code", "err")


def _error_codes(given: Mapping[str, Any], result: Any) -> tuple[int | None, int | None]:
    before = next((given[name] for name in _CODE_NAMES if type(given.get(name)) is int), None)
    if before is None:
        return None, None
    if hasattr(result, "error_code"):
        return before, result.error_code
    if hasattr(result, "handled"):
        return before, result.handled.fault.error_code if result.handled.called else before
    return before, before


_HANDLERS = tuple(source.handler for source in SOURCES.values())

WHY_FROM_EXIT = {**WHY, **dict.fromkeys(_HANDLERS, _why_handler)}
"""The steps that are watched if a fault is followed from its exit."""

CODE_STEPS = ("sanitize", "mark_private", "handler_error_code")
"""The steps that return the error code itself, alone or first."""


def source_of(function: FunctionType) -> str:
    """Return the `Source:` part of a function's docstring on one line; "" if it has none."""
    found = re.search(r"Source:\s*(.*?)(?:\n\s*\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    return re.sub(r"\s+", " ", found[1]).strip() if found else ""


@functools.cache
def ledger_lines(step: str) -> tuple[str, ...]:
    """The ids of the patch's added lines that `step` stands for."""
    with (data_dir() / "ledger" / "ledger.csv").open(encoding="utf-8", newline="") as file:
        return tuple(row["id"] for row in csv.DictReader(file) if row["step"] == step and row["sign"] == "+")


class Watcher:
    """A `bind` for the linker that records every watched step."""

    def __init__(self, revision: Revision, why: Mapping[str, Callable[[Record], str]] = WHY) -> None:
        self.revision = revision
        self.why = why
        self.records: list[Record] = []
        self._open: list[Record] = []
        self._posted = logic_names()

    def __call__(self, function: FunctionType) -> Callable[..., Any]:
        """Wrap a step so that it is recorded; leave other functions alone."""
        name = function.__name__
        if name not in self.why:
            return function
        posted = self._posted.get(name)
        lines = ledger_lines(name) if posted and posted.__code__ is function.__code__ else ()
        source = source_of(function)
        # A step made elsewhere may name its arguments anew.
        names = list(inspect.signature(posted or function).parameters)

        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False))
            given |= {name: kwargs[name] for name in names if name in kwargs}
            record = Record(name, len(self._open), given, self.revision, source=source, lines=lines)
            (self._open[-1].inner if self._open else self.records).append(record)
            self._open.append(record)
            try:
                record.result = function(*args, **kwargs)
            finally:
                self._open.pop()
            record.before, record.after = _error_codes(given, record.result)
            way = next((inner for inner in record.inner if inner.step == "route"), None)
            if way and not record.result.handled.called:
                record.after = way.after
            if name in _HANDLERS:
                mmu = record.result.mmu
                record.before = given["event"].info
                record.after = mmu.error_code if mmu.called else record.before
            if name in CODE_STEPS:
                record.after = record.result if name == "handler_error_code" else record.result[0]
            record.why = self.why[name](record)
            return record.result

        return watched

    def adopt(self, records: list[Record]) -> None:
        """Take in records that were made while this step was put off, as steps of the one that is open."""
        for record in flat(records):
            record.depth += len(self._open)
        (self._open[-1].inner if self._open else self.records).extend(records)


def flat(records: list[Record]) -> list[Record]:
    """List records with their inner ones, in the order in which the steps began."""
    return [each for record in records for each in (record, *flat(record.inner))]


GIVEN_STEPS = ("page_fault", "kvm_mem_is_private")
"""The steps whose result is an input: what the MMU's handler answers, and what user space declared."""


@dataclass
class Explanation:
    """One fault, followed: the outcome and the records; as text, one line a step.

    `inputs` says what was assumed rather than found out.
    """

    revision: Revision
    title: str
    outcome: Outcome
    records: list[Record]
    inputs: tuple[str, ...] = ()

    @property
    def steps(self) -> list[Record]:
        """All records in order."""
        return flat(self.records)

    def _lines(self, mark: bool) -> list[str]:
        lines = []
        for record in self.steps:
            code = ""
            if record.before is not None:
                code = f"{record.before:#x}"
                if record.after != record.before:
                    code += f" → {record.after:#x}"
            name = "  " * record.depth + record.step
            given = "given: " if mark and record.step in GIVEN_STEPS else ""
            lines.append(f"{name:<30} {code:<33} {given}{record.why}".rstrip())
        return lines

    def __str__(self) -> str:
        return "\n".join([self.title, *self._lines(False)])

    __repr__ = __str__

    def report(self) -> str:
        """The same for the command line: what was given is told apart from what was found out."""
        given = [f"given: {', '.join(self.inputs)}"] if self.inputs else []
        return "\n".join([self.title, *given, *self._lines(True)])


def _exit_values(
    source: str, values: Mapping[str, int], more: Mapping[str, object], revision: Revision, mmu_ret: int
) -> dict[str, int]:
    """Describe the exit as a row of a sources table; `values` are those of the cases tables, `more` of its own."""
    vm_type = VM_TYPES[values["vm_type"]].replace("-", "_")
    own = {
        "kind": KIND_NAMES.get(source, source),
        "info": 0 if source == "misconfig" else values["error_code"],
        "addr": values["cr2_or_gpa"],
        "insn_len": values["insn_len"],
        "guest_mode": values["guest_mode"],
        "direct_bits": values["direct_bits"],
        "sev_kind": vm_type if vm_type in SEV_KINDS else "none",
        "snp_guest": int(vm_type == "snp"),
        "mmu_ret": mmu_ret,
    }
    return row_values("sources", revision, **{**own, **more})


def _usual(source: str, state: Mapping[str, object]) -> dict[str, object]:
    """Return the inputs that differ from the tables' defaults if a fault comes from `source`.

    A trust domain's shared bit is bit 47 of the address, with 5-level EPT bit 51.
    Source: Linux `arch/x86/kvm/vmx/tdx.c`, Linux 7.3.4, TDX_SHARED_BIT_PWL_4, TDX_SHARED_BIT_PWL_5.
    """
    if source == "npf":
        return {"mmio_cfg": MMIO_NPT}
    if source == "tdx":
        shared = 51 if state.get("walk_root") in (5, "5") else 47
        return {"vm_type": "tdx", "mmio_cfg": MMIO_TDX, "direct_bits": 1 << shared - 12}
    if source == "pf" and not {"mode", *MODE_COLUMNS} & set(state):
        return {"mode": "shadow", "mmio_cfg": MMIO_NPT}
    return {}


def _inputs(values: Mapping[str, int], outcome: Outcome, revision: Revision) -> tuple[str, ...]:
    """Say which inputs, given or by default, the outcome rests on."""
    mode = next(
        (name for name, flags in MODES.items() if flags == tuple(values[c] for c in MODE_COLUMNS)), "unusual"
    )
    private = values["attrs"] & KVM_MEMORY_ATTRIBUTE_PRIVATE
    told = [f"paging mode {mode}", f"user space declared the page {'private' if private else 'shared'}"]
    if outcome.handled.called:
        told.append(f"the page-fault handler answers {answer(values['pf_ret'], revision)}")
    return tuple(told)


def explain(
    error_code: int | str = 0,
    cr2_or_gpa: int | str = 0x100000000,
    *,
    revision: str | Revision = "posted",
    source: str | None = None,
    **state: object,
) -> Explanation:
    """Follow one fault through kvm_mmu_page_fault() and say what each step did, and why.

    `error_code` and `cr2_or_gpa` are u64 as numbers or text; the code also takes names of bits ("WRITE|USER").
    `source` says where the code comes from, one of SOURCES: "npf" takes EXITINFO1, "ept" and "tdx" an exit
    qualification, "pf" a #PF error code, "misconfig" none; the exit's handler then comes first.  Without it the
    code goes straight into kvm_mmu_page_fault().  `state` names any input of the cases tables
    (`kvm_pf.run.tables.CASE_INPUTS`), `mode` or `private`, with a source also of the sources tables
    (SOURCE_INPUTS); the rest has the tables' defaults.  Raises InputError naming what is wrong.

    >>> print(explain("WRITE|USER", vm_type="sw-protected", private=True).outcome.handled.fault.is_private)
    True
    >>> explain(0x683, revision="v6_12", source="ept").outcome.handled.fault.error_code == 0x200000006
    True
    """
    revision = get(revision)
    watcher = Watcher(revision, WHY if source is None else WHY_FROM_EXIT)
    if source is None:
        values = case_values(revision, error_code=error_code, cr2_or_gpa=cr2_or_gpa, **state)
        with steps_of(revision):
            outcome, records = run_row("cases", values, revision, watcher), watcher.records
        code = f"error code {values['error_code']:#x} ({describe(values['error_code'])})"
        how = f"address {values['cr2_or_gpa']:#x}, {code}"
    else:
        if not isinstance(source, str) or source not in SOURCES:
            raise InputError(f"source={brief(source)}: it takes one of {', '.join(SOURCES)}")
        handler, gets, table = SOURCES[source]
        if source == "tdx" and revision.step(handler) is logic_names()[handler]:
            raise InputError(f"source='tdx': {revision.name} has no trust domains; they came with Linux 6.16")
        if isinstance(error_code, str) and table is EPT and not error_code[:1].isdigit():
            error_code = encode(error_code, EPT)
        own = {column.column for column in SOURCE_INPUTS} - {column.column for column in CASE_INPUTS}
        more = {name: state.pop(name) for name in own & set(state) - {"kind", "info", "addr", "mmu_ret"}}
        state = {**_usual(source, state), **state}
        values = case_values(revision, error_code=error_code, cr2_or_gpa=cr2_or_gpa, **state)
        with steps_of(revision):
            outcome, records = _through_handler(revision, source, values, more, watcher)
        code = (
            f" with {gets} {values['error_code']:#x} ({describe(values['error_code'], table)})"
            if gets
            else ""
        )
        how = f"through {handler}(){code}, address {values['cr2_or_gpa']:#x}"
    title = f"{revision.name}: {VM_TYPES[values['vm_type']]} VM, {how}"
    return Explanation(revision, title, outcome, records, _inputs(values, outcome, revision))


def _through_handler(
    revision: Revision, source: str, values: Mapping[str, int], more: Mapping[str, object], watcher: Watcher
) -> tuple[Outcome, list[Record]]:
    """Run an exit's handler, and kvm_mmu_page_fault() with what it hands on.

    The handler waits for the MMU's answer and the MMU for the handler's code, so the handler runs twice: to learn
    its call, and to learn what it makes of the answer.
    """
    call = run_row("sources", _exit_values(source, values, more, revision, 1), revision).mmu
    outcome, records = None, []
    if call.called:
        handed = {"error_code": call.error_code, "cr2_or_gpa": call.addr, "insn_len": call.insn_len}
        outcome = run_row("cases", {**values, **handed}, revision, watcher)
        records, watcher.records = watcher.records, []
    ret = outcome.ret if outcome else 1
    left = run_row("sources", _exit_values(source, values, more, revision, ret), revision, watcher)
    if outcome is None:
        mmio = no_mmio(case_state(values, revision).cache)
        nothing = (mmio, NO_FAULT, NO_LOOKUP, NO_UNPROTECT, NO_EMULATION, NO_STATS)
        outcome = Outcome(left.ret, 0, left.vm_bugged, *nothing)
    return outcome, [*watcher.records, *records]
