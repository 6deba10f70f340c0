# SPDX-License-Identifier: GPL-2.0-only
"""A recorded fault as a row of a table: its columns, the table as a DataFrame and as a file.

64-bit values never pass through floats.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints
from typing import Annotated as A

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import read
from kvm_pf.common.typed import typed
from kvm_pf.conformance.ftrace import LIMIT

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("Column", "FaultRow", "cell", "columns", "dump_faults", "fault_frame", "load_faults")


class Column(NamedTuple):
    """What a cell of a FaultRow holds.

    `kind` is the column's dtype in a DataFrame, `means` says what it is, `source` names where the cell comes
    from: `EVENT.FIELD`, a field of the fault's first such event ("" if it is reckoned).
    """

    kind: str
    means: str
    source: str = ""


def _u64(means: str = "", source: str = "") -> Column:
    return Column("UInt64", means, source)


def _i32(means: str = "", source: str = "") -> Column:
    return Column("Int32", means, source)


def _bool(means: str = "", source: str = "") -> Column:
    return Column("boolean", means, source)


def _text(means: str, source: str = "") -> Column:
    return Column("string", means, source)


Num = int | None
Flag = bool | None
Str = str | None


class FaultRow(NamedTuple):
    """One entry into KVM's page-fault handling; a cell is None where nothing was traced.

    Events that several probes can report have one name here: `entry` is npf, eptv, eptm or khpf, `handler` is
    tdp or p64, and so on for their returns.  Struct fields have the kernel's names, `in_` as the handler was
    entered, `out_` as it was left.
    """

    recording: A[str, _text("directory of the recording")]
    kernel: A[Str, _text("kernel release")]
    vendor: A[Str, _text("amd or intel")]
    mode: A[Str, _text("npt, ept or shadow")]
    scenario: A[str, _text("scenario, N-NAME")]
    step: A[Num, _i32("number of the step")]
    op: A[Str, _text("what user space did in the step")]
    fault: A[int, _i32("number of the fault in its scenario, from 0")]
    source: A[str, _text("npf, ept, miscfg, pf, prefault, async or call")]
    first_line: A[int, _i32("first line of the fault in the trace file")]
    last_line: A[int, _i32("last line of the fault in the trace file")]
    pid: A[int, _i32("task that ran the vCPU")]
    complete: A[bool, _bool("the trace shows how the fault ended")]
    address: A[Num, _u64("address that was handled: as passed, else as traced")]

    vcpu: A[Num, _i32("number of the vCPU, where kvm_exit names it", "kvm_exit.vcpu")] = None
    guest_mode: A[bool, _bool("L2 was running (kvm_nested_vmexit)")] = False
    nested: A[bool, _bool("and L1 gave it a nested page table")] = False
    exit_reason: A[Str, _text("why the guest was left", "kvm_exit.reason")] = None
    exit_rip: A[Num, _u64("guest rip", "kvm_exit.rip")] = None
    info1: A[Num, _u64("EXITINFO1, or exit qualification", "kvm_exit.info1")] = None
    info2: A[Num, _u64("EXITINFO2, or vectoring info", "kvm_exit.info2")] = None
    intr_info: A[Num, _u64("interruption or vectoring info", "kvm_exit.intr_info")] = None
    intr_error_code: A[Num, _u64("its 32-bit exception code", "kvm_exit.error_code")] = None
    cpu_code: A[Num, _u64("code as the CPU reported it (see the table of sources)")] = None
    cpu_address: A[Num, _u64("address as the CPU reported it, where kvm_exit shows it")] = None
    inject_at: A[Str, _text("where the code was changed on purpose: npf, ept, pf, joined by +")] = None
    inject_cpu_from: A[Num, _u64("code before a change at npf or ept", "pre_cpu.old")] = None
    inject_cpu_to: A[Num, _u64("code after a change at npf or ept", "pre_cpu.new")] = None
    inject_pf_from: A[Num, _u64("argument before a change at pf", "pre_pf.old")] = None
    inject_pf_to: A[Num, _u64("argument after a change at pf", "pre_pf.new")] = None
    khpf_err: A[Num, _u64("argument of kvm_handle_page_fault()", "khpf.err")] = None
    khpf_addr: A[Num, _u64("argument of kvm_handle_page_fault()", "khpf.addr")] = None
    fast_mmio_gpa: A[Num, _u64("fast MMIO took the fault", "kvm_fast_mmio.gpa")] = None
    trace_address: A[Num, _u64("tracepoint kvm_page_fault", "kvm_page_fault.address")] = None
    trace_error_code: A[Num, _u64("the same", "kvm_page_fault.error_code")] = None

    pf_gpa: A[Num, _u64("argument of kvm_mmu_page_fault()", "pf.gpa")] = None
    pf_err: A[Num, _u64("argument of kvm_mmu_page_fault()", "pf.err")] = None
    pf_insn: A[Num, _u64("argument of kvm_mmu_page_fault()", "pf.insn")] = None
    pf_insn_len: A[Num, _i32("argument of kvm_mmu_page_fault()", "pf.insn_len")] = None
    look_gfn: A[Num, _u64("attribute looked up in kvm_mmu_page_fault(): of which gfn", "look_pf.gfn")] = None
    look_word: A[Num, _u64("what was found, as the xarray holds it; 0: nothing", "look_pf_val.val")] = None
    mmio_addr: A[Num, _u64("an MMIO SPTE was used: gva", "handle_mmio_page_fault.addr")] = None
    mmio_gfn: A[Num, _u64("the same: its gfn", "handle_mmio_page_fault.gfn")] = None
    mmio_access: A[Num, _u64("the same: its access", "handle_mmio_page_fault.access")] = None
    check_spte: A[Num, _u64("MMIO SPTE that was checked", "check_mmio_spte.spte")] = None
    check_kvm_gen: A[Num, _u64("memslots' generation", "check_mmio_spte.kvm_gen")] = None
    check_spte_gen: A[Num, _u64("the SPTE's generation", "check_mmio_spte.spte_gen")] = None
    check_valid: A[Flag, _bool("they agree", "check_mmio_spte.valid")] = None

    handler: A[Str, _text("handler: kvm_tdp_page_fault or paging64_page_fault")] = None
    in_addr: A[Num, _u64()] = None
    in_error_code: A[Num, _u64()] = None
    in_prefetch: A[Flag, _bool()] = None
    in_exec: A[Flag, _bool()] = None
    in_write: A[Flag, _bool()] = None
    in_present: A[Flag, _bool()] = None
    in_rsvd: A[Flag, _bool()] = None
    in_user: A[Flag, _bool()] = None
    in_is_tdp: A[Flag, _bool()] = None
    in_is_private: A[Flag, _bool()] = None
    in_nx_huge_page_workaround_enabled: A[Flag, _bool()] = None
    in_huge_page_disallowed: A[Flag, _bool()] = None
    in_max_level: A[Num, _i32()] = None
    in_req_level: A[Num, _i32()] = None
    in_goal_level: A[Num, _i32()] = None
    in_gfn: A[Num, _u64()] = None
    in_slot: A[Num, _u64("fault->slot, a kernel address, 0 for none")] = None
    in_pfn: A[Num, _u64()] = None
    in_hva: A[Num, _u64()] = None
    in_map_writable: A[Flag, _bool()] = None
    in_write_fault_to_shadow_pgtable: A[Flag, _bool()] = None

    fast_look_gfn: A[Num, _u64("attribute looked up in fast_page_fault()", "look_fast.gfn")] = None
    fast_look_word: A[Num, _u64("what was found", "look_fast_val.val")] = None
    fast_ret: A[Num, _i32("fast_page_fault() returned", "fast_ret.ret")] = None
    fast_gva: A[Num, _u64("tracepoint fast_page_fault", "fast_page_fault.gva")] = None
    fast_error_code: A[Num, _u64("the same, its letters put back into bits")] = None
    fast_sptep: A[Num, _u64("the same", "fast_page_fault.sptep")] = None
    fast_old: A[Num, _u64("the same: SPTE before", "fast_page_fault.old")] = None
    fast_new: A[Num, _u64("the same: SPTE after", "fast_page_fault.new")] = None
    fast_spurious: A[Flag, _bool("the same", "fast_page_fault.spurious")] = None
    fast_fixed: A[Flag, _bool("the same", "fast_page_fault.fixed")] = None
    walk_addr: A[Num, _u64("guest walk in the handler: gva", "walk.addr")] = None
    walk_pferr: A[Num, _u64("the same: its access", "walk.pferr")] = None
    walk_error: A[Num, _u64("what was wrong with the guest's tables", "walk_error.pferr")] = None
    walk_look_gfn: A[Num, _u64("attribute looked up after the walk (not upstream)", "look_p64.gfn")] = None
    walk_look_word: A[Num, _u64("what was found", "look_p64_val.val")] = None
    l1_reason: A[Str, _text("the fault is L1's: exit injected", "l1_inject.reason")] = None
    l1_info1: A[Num, _u64("its EXITINFO1 or exit qualification", "l1_inject.info1")] = None
    l1_info2: A[Num, _u64("its EXITINFO2", "l1_inject.info2")] = None
    faultin_look_gfn: A[Num, _u64("attribute that is_private is compared with", "look_faultin.gfn")] = None
    faultin_look_word: A[Num, _u64("what was found", "look_faultin_val.val")] = None
    noslot_addr: A[Num, _u64("fault->addr at kvm_handle_noslot_fault()", "noslot.addr")] = None
    noslot_err: A[Num, _u64("fault->error_code there", "noslot.err")] = None
    noslot_ret: A[Num, _i32("kvm_handle_noslot_fault() returned", "noslot_ret.ret")] = None
    gmem_gfn: A[Num, _u64("argument of kvm_gmem_get_pfn()", "gmem.gfn")] = None
    gmem_ret: A[Num, _i32("kvm_gmem_get_pfn() returned", "gmem_ret.ret")] = None
    faultin_ret: A[Num, _i32("kvm_faultin_pfn() returned", "faultin_ret.ret")] = None
    invalidated: A[bool, _bool("host mappings were invalidated meanwhile (kvm_unmap_hva_range)")] = False
    requested_gfn: A[Num, _u64("mapping asked for", "kvm_mmu_spte_requested.gfn")] = None
    requested_pfn: A[Num, _u64("the same", "kvm_mmu_spte_requested.pfn")] = None
    requested_level: A[Num, _i32("the same: goal level", "kvm_mmu_spte_requested.level")] = None
    requested_access: A[Num, _u64("the same, v7.3", "kvm_mmu_spte_requested.access")] = None
    changed_gfn: A[Num, _u64("last change by the TDP MMU", "kvm_tdp_mmu_spte_changed.gfn")] = None
    changed_level: A[Num, _i32("the same", "kvm_tdp_mmu_spte_changed.level")] = None
    changed_old: A[Num, _u64("the same: SPTE before", "kvm_tdp_mmu_spte_changed.old_spte")] = None
    changed_new: A[Num, _u64("the same: SPTE after", "kvm_tdp_mmu_spte_changed.new_spte")] = None
    set_gfn: A[Num, _u64("first SPTE that was set", "kvm_mmu_set_spte.gfn")] = None
    set_spte: A[Num, _u64("the same", "kvm_mmu_set_spte.spte")] = None
    set_access: A[Str, _text("the same: r, w, x, u or -", "kvm_mmu_set_spte.access")] = None
    set_level: A[Num, _i32("the same", "kvm_mmu_set_spte.level")] = None
    set_count: A[int, _i32("how many were set: the first is the fault's own, the rest are prefetched")] = 0
    prefetched: A[Str, _text("gfns of those after the first, by a fault that walked the guest's tables")] = (
        None
    )
    mark_sptep: A[Num, _u64("MMIO SPTE that was made", "mark_mmio_spte.sptep")] = None
    mark_gfn: A[Num, _u64("the same", "mark_mmio_spte.gfn")] = None
    mark_access: A[Num, _u64("the same: low bits of the SPTE", "mark_mmio_spte.access")] = None
    mark_gen: A[Num, _u64("the same: its generation", "mark_mmio_spte.gen")] = None

    out_addr: A[Num, _u64()] = None
    out_error_code: A[Num, _u64()] = None
    out_is_private: A[Flag, _bool()] = None
    out_max_level: A[Num, _i32()] = None
    out_req_level: A[Num, _i32()] = None
    out_goal_level: A[Num, _i32()] = None
    out_gfn: A[Num, _u64()] = None
    out_mmu_seq: A[Num, _u64()] = None
    out_pfn: A[Num, _u64()] = None
    out_hva: A[Num, _u64()] = None
    out_map_writable: A[Flag, _bool()] = None
    out_write_fault_to_shadow_pgtable: A[Flag, _bool()] = None
    handler_ret: A[Num, _i32("the handler returned (RET_PF_*, or -errno)", "handler_ret.ret")] = None

    emul_in_pf: A[Flag, _bool("x86_emulate_instruction() was called from the fault path")] = None
    emul_gpa: A[Num, _u64("argument of x86_emulate_instruction()", "emul.gpa")] = None
    emul_type: A[Num, _u64("the same: emulation_type", "emul.emulation_type")] = None
    emul_insn: A[Str, _text("instruction bytes", "kvm_emulate_insn.insn")] = None
    emul_failed: A[Flag, _bool("it could not be emulated")] = None
    emul_ret: A[Num, _i32("x86_emulate_instruction() returned", "emul_ret.ret")] = None
    emul_mmio: A[Str, _text("emulated access: unsatisfied-read, read or write", "kvm_mmio.type")] = None
    pf_ret: A[Num, _i32("kvm_mmu_page_fault() returned", "pf_ret.ret")] = None
    entry_ret: A[Num, _i32("npf_interception(), handle_ept_* returned", "entry_ret.ret")] = None
    exception: A[Str, _text("exception injected before re-entry", "kvm_inj_exception.exception")] = None

    run: A[Num, _i32("KVM_RUN of the step, from 0; none for prefault")] = None
    last_of_run: A[Flag, _bool("no later fault in that KVM_RUN")] = None
    user_exit: A[Str, _text("exit to user space that followed directly: KVM_EXIT_*, error")] = None
    user_exit_number: A[Num, _i32("its number, or errno")] = None
    rc: A[Num, _i32("result of the KVM_RUN or KVM_PRE_FAULT_MEMORY that the fault is part of")] = None
    errno: A[Num, _i32("its errno")] = None
    exit: A[Num, _i32("exit_reason that this KVM_RUN left")] = None
    exit_name: A[Str, _text("its name")] = None
    run_guest_mode: A[Num, _i32("KVM_RUN_X86_GUEST_MODE: the exit came while L2 ran")] = None
    l2_exit: A[Num, _u64("what L1 sees of L2's exit: exit code or reason; last run of the step only")] = None
    l2_exit_info1: A[Num, _u64("the same: EXITINFO1 or exit qualification")] = None
    l2_exit_info2: A[Num, _u64("the same: EXITINFO2 or guest-physical address")] = None
    memory_fault_flags: A[Num, _u64("memory_fault exit; last fault of the run only")] = None
    memory_fault_gpa: A[Num, _u64("the same")] = None
    memory_fault_size: A[Num, _u64("the same")] = None
    exit_mmio_gpa: A[Num, _u64("mmio exit; last fault of the run only")] = None
    exit_mmio_len: A[Num, _i32("the same")] = None
    exit_mmio_is_write: A[Flag, _bool("the same")] = None
    exit_mmio_data: A[Num, _u64("the same")] = None
    suberror: A[Num, _i32("internal error exit; last fault of the run only")] = None
    stat_pf_taken: A[Num, _i32("statistic's growth over the KVM_RUN; last fault of the run only")] = None
    stat_pf_fixed: A[Num, _i32("the same")] = None
    stat_pf_emulate: A[Num, _i32("the same")] = None
    stat_pf_spurious: A[Num, _i32("the same")] = None
    stat_pf_fast: A[Num, _i32("the same")] = None
    stat_pf_mmio_spte_created: A[Num, _i32("the same")] = None
    stat_pf_guest: A[Num, _i32("the same")] = None

    state_gfn: A[Num, _u64("page that the following describe, if known")] = None
    state_vm: A[Str, _text("kind of VM: default or swprot")] = None
    state_updates: A[Num, _i32("changes of the memslots since the VM was created")] = None
    state_generation: A[Num, _u64("memslots' generation (low bits), seen or reckoned")] = None
    state_slot: A[Num, _i32("user's slot that holds the page")] = None
    state_slot_flags: A[Str, _text("its flags, as in the op")] = None
    state_private: A[Flag, _bool("user space declared the page private")] = None
    state_host: A[Str, _text("last host operation on the page: mprotro, mprotrw, unmap, zap")] = None
    state_spte: A[Num, _u64("traced entry that maps the page or ends the walk to it")] = None
    state_spte_level: A[Num, _i32("its level")] = None
    state_mmio_gen: A[Num, _u64("generation of the page's MMIO SPTE")] = None
    state_cached_gfn: A[Num, _u64("gfn of the last MMIO fault that the vCPU kept")] = None
    state_cached_gva: A[Num, _u64("its gva, 0 if direct")] = None
    state_cached_age: A[Num, _i32("changes of the memslots since")] = None


@functools.cache
def columns() -> dict[str, Column]:
    """Return what each column of a FaultRow is, in order."""
    table = {}
    for name, hint in get_type_hints(FaultRow, include_extras=True).items():
        column: Column = hint.__metadata__[0]
        side, _, member = name.partition("_")
        if side in ("in", "out"):
            event = "handler" if side == "in" else "handler_ret"
            column = column._replace(means=column.means or f"fault->{member}", source=f"{event}.{member}")
        table[name] = column
    return table


_RANGES = {"UInt64": (0, (1 << 64) - 1), "Int32": (-(1 << 31), (1 << 31) - 1), "boolean": (0, 1)}


def cell(column: Column, value: object, where: str) -> Any:
    """Check a value against its column; text that holds a number becomes one."""
    if value is None:
        return None
    if column.kind == "string":
        return str(value) or None
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = None
    low, high = _RANGES[column.kind]
    if not isinstance(number, int) or not low <= number <= high:
        raise InputError(f"{where} is {value!r}; a number from {low:#x} to {high:#x} is wanted")
    return bool(number) if column.kind == "boolean" else int(number)


def fault_frame(rows: Iterable[FaultRow]) -> pd.DataFrame:
    """Return the rows as a DataFrame with nullable columns of the kinds that `columns()` names."""
    import numpy as np
    import pandas as pd

    rows = list(rows)
    arrays: dict[str, Any] = {}
    for index, (name, column) in enumerate(columns().items()):
        values: list[Any] = [row[index] for row in rows]
        if column.kind == "string":
            arrays[name] = pd.array(values, dtype="string")
            continue
        missing = np.array([value is None for value in values], dtype="bool")
        dtype = np.dtype("bool" if column.kind == "boolean" else column.kind.lower())
        array = pd.arrays.BooleanArray if column.kind == "boolean" else pd.arrays.IntegerArray
        arrays[name] = array(np.array([value or 0 for value in values], dtype=dtype), missing)
    return pd.DataFrame(arrays)


def dump_faults(rows: Iterable[FaultRow]) -> str:
    """Return rows as CSV: 64-bit values in hexadecimal, booleans as 0 and 1, None as nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns())
    write: dict[str, Callable[[Any], object]] = {"UInt64": hex, "Int32": int, "boolean": int, "string": str}
    kinds = [column.kind for column in columns().values()]
    for row in rows:
        writer.writerow(
            None if value is None else write[kind](value) for kind, value in zip(kinds, row, strict=True)
        )
    return out.getvalue()


@typed()
def load_faults(path: str | Path) -> list[FaultRow]:
    """Read rows that `dump_faults` wrote; the file may be gzipped.

    Raises InputError if the columns are not those of FaultRow or a value does not fit its column.
    """
    path, table = Path(path), columns()
    try:
        header, *lines = csv.reader(io.StringIO(read(path, LIMIT).decode(errors="replace")))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: no CSV ({error}); what dump_faults wrote is wanted") from error
    if header != list(table):
        raise InputError(f"{path}:1: the columns are {header[:4]}…; those of FaultRow are wanted, in order")
    rows = []
    for number, line in enumerate(lines, 2):
        if len(line) != len(table):
            raise InputError(f"{path}:{number}: {len(line)} values; {len(table)} are wanted")
        try:
            rows.append(FaultRow._make(
                cell(column, text, name) if text else None
                for (name, column), text in zip(table.items(), line, strict=True)
            ))  # fmt: skip
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return rows
