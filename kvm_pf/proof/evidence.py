# SPDX-License-Identifier: GPL-2.0-only
"""States that somebody wrote down or recorded: the curated cases and the recorded faults, as inputs by column."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from kvm_pf.common.errors import InputError
from kvm_pf.mmio import MMIO_EPT, MMIO_NPT
from kvm_pf.proof.case import COLUMNS, WAYS, Case, common_outputs, default
from kvm_pf.revisions import Revision
from kvm_pf.run.inputs import ANSWERS, answers, row_values
from kvm_pf.run.tables import MODE_COLUMNS, MODES
from kvm_pf.state import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
    KVM_X86_TDX_VM,
)


def tells(
    name: str, state: Mapping[str, int], seen: Mapping[str, int], a: Revision, b: Revision
) -> list[str]:
    """Say which revision a recorded fault agrees with, if they differ in something that was recorded."""
    case, way = Case(state), "kvm_mmu_page_fault"
    for output in common_outputs(way, a, b):
        if output.column in seen and case.differs(way, output, a, b):
            for revision in (a, b):
                reached, value = case.cell(way, output, revision)
                if reached and value == seen[output.column]:
                    return [f"{name}: {output.column} as {revision.name}"]
    return []


RECORDED = {
    "f_error_code": "in_error_code",
    "f_is_private": "in_is_private",
    "ret": "pf_ret",
    "emu_type": "emul_type",
}
"""Outputs that recordings show, and their columns there."""


@cache
def curated(way: str, revision: Revision) -> list[tuple[str, dict[str, int]]]:
    """The inputs of the curated cases that take a way, by their ids."""
    from kvm_pf.conformance.corpus import load_corpus

    cases = load_corpus().cases.drop_duplicates("id").sort_values("id")
    found = []
    for row in cases.to_dict("records"):
        given: dict[str, Any] = row["input"]
        if row["kind"] == WAYS[way].kind or (row["kind"] == "call" and row["function"] == way):
            try:
                found.append((row["id"], _state(way, given, revision)))
            except InputError:  # an answer that this revision does not have
                continue
    return found


_OWN_NAMES = {
    "kvm_arch_async_page_ready": {"error_code": "put_off_code"},
    "kvm_arch_vcpu_pre_fault_memory": {"gpa": "cr2_or_gpa"},
}
"""Inputs that cases of kind `call` name otherwise."""


def _state(way: str, given: Mapping[str, Any], revision: Revision) -> dict[str, int]:
    """Turn a curated case's inputs into numbers by column.  Raises InputError if there is no column for one."""
    given = {_OWN_NAMES.get(way, {}).get(name, name): value for name, value in given.items()}
    if "has_private_mem" in given:
        private = KVM_X86_TDX_VM if given["direct_bits"] else KVM_X86_SW_PROTECTED_VM
        given["vm_type"] = private if given.pop("has_private_mem") else KVM_X86_DEFAULT_VM
    values = row_values(WAYS[way].kind, revision, **given)
    if "pf_ret" not in values:
        return values
    back = {number: ANSWERS.index(name) for name, number in answers(revision).items()}
    return {**values, "pf_ret": back.get(values["pf_ret"], values["pf_ret"])}


@cache
def recorded() -> list[tuple[str, dict[str, int], dict[str, int]]]:
    """The recorded faults that came to kvm_mmu_page_fault(): name, state as far as it was traced, outputs seen.

    Faults of 6.1 are left out: its codes have 32 bits.  The patch's own kernel comes first.
    """
    from kvm_pf.conformance.corpus import load_corpus
    from kvm_pf.conformance.placement import revision_for

    frame = load_corpus().recordings
    frame = frame[
        frame["pf_err"].notna() & frame["state_private"].notna() & (frame["recording"] != "6.1-debian")
    ]
    frame = frame.sort_values("recording", key=lambda names: names != "posted-on-6.12", kind="stable")
    found = []
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        numbers = {number: name for name, number in answers(revision_for(row["kernel"])[0]).items()}
        mode = {"npt": "tdp", "ept": "tdp"}.get(row["mode"], "shadow")
        state = {
            **dict(zip(MODE_COLUMNS, MODES[mode], strict=True)),
            "error_code": row["pf_err"],
            "cr2_or_gpa": row["pf_gpa"],
            "vm_type": int(row["state_vm"] == "swprot"),
            "attrs": KVM_MEMORY_ATTRIBUTE_PRIVATE if row["state_private"] else 0,
            "memslot": int(bool(row["in_slot"])),
            "emu_ret": row["emul_ret"] if row["emul_ret"] is not None else 1,
            "mmio_cfg": MMIO_EPT if row["mode"] == "ept" else MMIO_NPT,
        }
        answer = row["handler_ret"]
        if answer is not None:
            state["pf_ret"] = ANSWERS.index(numbers[answer]) if answer in numbers else answer
        if row["check_spte"] is not None:
            state |= {"walk_leaf": 1, "spte1": row["check_spte"], "gen": row["check_kvm_gen"]}
        elif row["mmio_gfn"] is not None:
            state |= {"mmio_gfn": row["mmio_gfn"], "mmio_gen": default(COLUMNS["gen"])}
        name = f"{row['recording']} {row['scenario']} fault {row['fault']} ({row['op']})"
        seen = {column: int(row[cell]) for column, cell in RECORDED.items() if row[cell] is not None}
        found.append((name, {key: int(value) for key, value in state.items()}, seen))
    return found
