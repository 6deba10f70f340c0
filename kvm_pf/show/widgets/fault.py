# SPDX-License-Identifier: GPL-2.0-only
"""The fault explorer: change a fault's state and see the path change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from kvm_pf.bits import PFERR
from kvm_pf.common.typed import typed
from kvm_pf.mmio import MMIO_NPT, NPT_ACCESS_MASK, mmio_format
from kvm_pf.revisions import REVISIONS, Revision, get
from kvm_pf.run.inputs import case_values, outputs, ret_pf_names
from kvm_pf.run.tables import CASE_INPUTS, MODE_COLUMNS, MODES, VM_TYPES
from kvm_pf.run.watch import Explanation, explain, warn_names
from kvm_pf.show.markup import Html, beside, bold, changed, code, element, join, table
from kvm_pf.show.widgets.bits import BitGrid
from kvm_pf.show.widgets.panel import Panel, choice, ids, line, read_code, show, text_box, tick
from kvm_pf.state import (
    EMULTYPE_ALLOW_RETRY_PF,
    EMULTYPE_PF,
    EMULTYPE_WRITE_PF_TO_SP,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    Outcome,
)

OTHER = "as given"
"""Stands for a state that no other option of a control describes."""

MMIO = ("none", "MMIO SPTE, current", "MMIO SPTE, stale", "in the vCPU's cache", "slots being updated")
MMIO_COLUMNS = (
    "mmio_cfg", "walk_root", "walk_leaf", "spte5", "spte4", "spte3", "spte2", "spte1", "mmio_gva", "mmio_gfn",
    "mmio_gen", "mmio_access", "gen",
)  # fmt: skip
"""The input columns that the choice of MMIO governs."""

FLAGS = {
    "cfg_sw_protected": ("CONFIG_KVM_SW_PROTECTED_VM", "the kernel knows software-protected VMs"),
    "cfg_private_mem": ("CONFIG_KVM_PRIVATE_MEM", "the kernel knows private memory"),
    "root_valid": ("root is valid", "the vCPU has a page table to fault into"),
}

DEFAULTS = {column.column: column.default for column in CASE_INPUTS}

Given = dict[str, Any]
Facts = dict[str, tuple[object, ...]]


def mmio_state(preset: str, revision: Revision, addr: int) -> Given:
    """Return the input columns of a state of MMIO: what the walk for `addr` (u64) and the vCPU's cache hold.

    The SPTE is the revision's own make_mmio_spte(), in the format of nested paging on AMD.
    """
    if preset == "none":
        return {}
    gfn, gen = addr >> PAGE_SHIFT, case_values()["gen"]
    state: Given = {"mmio_cfg": MMIO_NPT, "gen": gen}
    if preset == "in the vCPU's cache":
        cached = {"mmio_gva": addr & ~PAGE_OFFSET_MASK, "mmio_gfn": gfn, "mmio_gen": gen}
        return {**state, **cached, "mmio_access": NPT_ACCESS_MASK}
    made = gen - 2 if preset == "MMIO SPTE, stale" else gen
    spte = revision.link("make_mmio_spte")(mmio_format(MMIO_NPT, True), made, gfn, NPT_ACCESS_MASK)
    if preset == "slots being updated":
        state["gen"] = gen | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
    return {**state, "walk_leaf": 1, "spte1": spte}


@typed(error_code=64)
def fault_explorer(
    revision: str | Revision = "posted", error_code: int | str = 0, **state: object
) -> FaultExplorer:
    """Return the explorer, set to a fault; `error_code` and `state` as `kvm_pf.explain` takes them.

    What has no control of its own (`gen`, `insn_len`, …) stays as given.  Raises InputError naming what is wrong.
    """
    return FaultExplorer(get(revision), {"error_code": error_code, **state})


class FaultExplorer(Panel):
    """One fault: `revision`, `given` (inputs of the cases tables), `explanation`.

    Controls: revision, error_code, bits, cr2_or_gpa, vm_type, private, mode, cfg_sw_protected, cfg_private_mem,
    root_valid, pf_ret, mmio.
    """

    explanation: Explanation

    def __init__(self, revision: Revision, state: Mapping[str, object]) -> None:
        names = list(REVISIONS) if revision.name in REVISIONS else [*REVISIONS, revision.name]
        controls = {
            "revision": choice("revision", "which kernel handles the fault", names, revision.name, "13em"),
            "error_code": text_box("error code", "hexadecimal, or names such as WRITE|USER; Enter takes it"),
            "bits": BitGrid(PFERR, "the 64 bits of the error code"),
            "cr2_or_gpa": text_box(
                "address", "the address that KVM gets, hexadecimal; Enter takes it", width="15em"
            ),
            "vm_type": choice("VM type", "kvm->arch.vm_type", VM_TYPES, VM_TYPES[0]),
            "private": tick(
                "page is private", "user space declared the faulting page private (attribute bit 3)"
            ),
            "mode": choice("paging", "the vCPU's MMU: direct or shadow, L1 or L2", [*MODES, OTHER], "tdp"),
            **{name: tick(label, tooltip) for name, (label, tooltip) in FLAGS.items()},
            "pf_ret": choice(
                "the handler answers", "RET_PF_* or an errno, should it be asked", ["FIXED"], "FIXED"
            ),
            "mmio": choice("MMIO", "what the page tables and the vCPU's cache know", [*MMIO, OTHER], "none"),
        }
        lines = (
            ("revision", "vm_type"), ("error_code",), ("bits",), ("cr2_or_gpa", "private"), ("mode", "root_valid"),
            ("cfg_sw_protected",), ("cfg_private_mem",), ("pf_ret",), ("mmio",),
        )  # fmt: skip
        super().__init__(controls, [line(*(controls[name] for name in names)) for names in lines])
        self._own = {revision.name: revision}
        self._last: dict[str, Facts] = {}
        self._now: dict[str, Facts] = {}
        self.set(revision, **state)

    def set(self, revision: str | Revision = "posted", **state: object) -> None:
        """Set the explorer to a fault; what is not given has its default.  Arguments and errors as `fault_explorer`."""
        revision = get(revision)
        values = case_values(revision, **state)
        names = {number: name for name, number in ret_pf_names(revision).items()}
        given: Given = {name: value for name, value in values.items() if value != DEFAULTS[name]}
        given["pf_ret"] = names.get(values["pf_ret"], str(values["pf_ret"]))
        with self.quiet():
            self.controls["mmio"].value = OTHER if any(name in given for name in MMIO_COLUMNS) else "none"
            self._show(revision, given)

    def react(self, name: str) -> None:
        """Take over one control; the state of MMIO follows revision and address."""
        controls, given = self.controls, dict(self.given)
        value, revision = controls[name].value, self.revision
        match name:
            case "revision":
                revision = self._own.get(value) or get(value)
                if given["pf_ret"] == "WRITE_PROTECTED" and "WRITE_PROTECTED" not in ret_pf_names(revision):
                    given["pf_ret"] = "EMULATE"  # of which it is a part up to 6.10
            case "error_code":
                given[name] = read_code(value)
            case "bits":
                given["error_code"] = controls[name].number
            case "cr2_or_gpa":
                given[name] = read_code(value, (), "address")
            case "vm_type":
                given[name] = VM_TYPES.index(value)
            case "private":
                given["attrs"] = self._value("attrs") & ~KVM_MEMORY_ATTRIBUTE_PRIVATE
                given["attrs"] |= KVM_MEMORY_ATTRIBUTE_PRIVATE if value else 0
            case "mode":
                given |= dict(zip(MODE_COLUMNS, MODES[value], strict=True)) if value != OTHER else {}
            case "mmio":
                pass
            case _:
                given[name] = value
        if controls["mmio"].value != OTHER:
            given = {name: each for name, each in given.items() if name not in MMIO_COLUMNS}
            address = given.get("cr2_or_gpa", DEFAULTS["cr2_or_gpa"])
            given |= mmio_state(controls["mmio"].value, revision, address)
        self._show(revision, given)

    def _value(self, name: str) -> Any:
        return self.given.get(name, DEFAULTS[name])

    def _show(self, revision: Revision, given: Given) -> None:
        """Run the fault, take it over, set the controls, draw; nothing is taken over if the fault is none."""
        self.explanation = explain(revision=revision, **given)
        self.revision, self.given = revision, given
        controls = self.controls
        controls["revision"].value = revision.name
        for name in ("error_code", "cr2_or_gpa"):
            controls[name].value = f"{self._value(name):#x}"
        controls["bits"].number = self._value("error_code")
        controls["vm_type"].value = VM_TYPES[self._value("vm_type")]
        controls["private"].value = self._value("attrs") & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
        mode = tuple(self._value(column) for column in MODE_COLUMNS)
        controls["mode"].value = next((name for name, columns in MODES.items() if columns == mode), OTHER)
        for name in FLAGS:
            controls[name].value = bool(self._value(name))
        answers = list(ret_pf_names(revision))
        answers += [given["pf_ret"]] if given["pf_ret"] not in answers else []
        if controls["pf_ret"].options != tuple(answers):
            controls["pf_ret"].options = answers
        controls["pf_ret"].value = given["pf_ret"]
        self._last, self._now = self._now, _facts(self.explanation)
        self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield the fault, what the last setting changed, the outcome, the path, the struct; changes are marked."""
        now, last = self._now, self._last or self._now
        rest = {
            name for name in self.given if name not in self.controls and name not in (*MODE_COLUMNS, "attrs")
        }
        if self.controls["mmio"].value != OTHER:
            rest -= set(MMIO_COLUMNS)
        also = ", ".join(f"{name}={show(self.given[name])}" for name in sorted(rest))
        yield element("p", bold(self.explanation.title), f"; {also}" if also else "")
        yield element(
            "p", join(_changes(now, last), "; ") if self._last else "▲ will mark what a setting changes"
        )
        usual = [
            f"{name}: {value}"
            for name, (_, value) in now["outcome"].items()
            if value in USUAL and last["outcome"][name][1] == value
        ]
        shown = {name: cells for name, cells in now["outcome"].items() if f"{name}: {cells[1]}" not in usual}
        results = list(_marked(shown, last["outcome"]))
        yield table("the outcome", ("what", "value") * 2, beside(results, 2))
        yield element("p", ", ".join(usual))
        heads = ("step", "error code", "what it did [lines of the patch]")
        yield table("the path", heads, _marked(now["path"], last["path"]))
        old, new = last["struct"], now["struct"]
        fields = [
            (code(name), changed(value, name in old and old[name] != (value,)))
            for name, (value,) in new.items()
        ]
        caption = changed("struct kvm_page_fault", old.keys() != new.keys())
        yield table(caption, ("field", "value") * 3, beside(fields, 3))

    def __repr__(self) -> str:
        return f"fault_explorer({self.revision.name}, {self._value('error_code'):#x})"


# What is shown, by name


def _facts(explanation: Explanation) -> dict[str, Facts]:
    return {"path": _path(explanation), "struct": _struct(explanation), "outcome": _outcome(explanation)}


def _path(explanation: Explanation) -> Facts:
    """Each step by its name (and number, should it come again): name, error code, what it did and patch lines."""
    found: Facts = {}
    for record in explanation.steps:
        key, again = record.step, 1
        while key in found:
            again += 1
            key = f"{record.step} ({again})"
        codes = [f"{each:#x}" for each in dict.fromkeys((record.before, record.after)) if each is not None]
        lines = f" [{ids(record.lines)}]" if record.lines else ""
        found[key] = ("\u00a0\u00a0\u00a0" * record.depth + key, " → ".join(codes), record.why + lines)
    return found


def _struct(explanation: Explanation) -> Facts:
    """Each field of the struct kvm_page_fault that the revision has; nothing if there is none."""
    found: Facts = {}
    for output in outputs("cases", explanation.revision):
        if output.reached == "handled.called" and explanation.outcome.handled.called:
            value = attrgetter(output.path)(explanation.outcome)
            text = f"{value:#x}" if output.kind == "u64" else str(int(value))
            found[output.path.rpartition(".")[2]] = (text,)
    return found or {"none": ("no handler was asked",)}


def _outcome(explanation: Explanation) -> Facts:
    """What came of it: each result of kvm_mmu_page_fault(), in words."""
    o: Outcome = explanation.outcome
    names = {number: name for name, number in ret_pf_names(explanation.revision).items()}

    def answer(value: int) -> str:
        return names.get(value, str(value)) if value >= 0 else str(value)

    then = (
        "an error to user space"
        if o.ret < 0
        else "an exit to user space"
        if o.ret == 0
        else "resume the guest"
    )
    exit_, emulation = o.handled.exit, o.emulation
    kinds = {
        "PF": EMULTYPE_PF,
        "ALLOW_RETRY_PF": EMULTYPE_ALLOW_RETRY_PF,
        "WRITE_PF_TO_SP": EMULTYPE_WRITE_PF_TO_SP,
    }
    told = "|".join(name for name, mask in kinds.items() if emulation.emulation_type & mask)
    return {
        name: (name, value)
        for name, value in {
            "returned": f"{o.ret}: {then}",
            "warnings": (warn_names(o.warns) or "none") + ("; the VM is dead" if o.vm_bugged else ""),
            "attribute look-ups": f"{o.lookups.count}, of gfn {o.lookups.gfn:#x}" if o.lookups.count else "none",
            "MMIO path": answer(o.mmio.ret) if o.mmio.called else "not taken",
            "page-fault handler": answer(o.handled.ret) if o.handled.called else "not asked",
            "memory-fault exit": f"exit {exit_.exit_reason}: gpa {exit_.gpa:#x}, size {exit_.size:#x}, "
            f"flags {exit_.flags:#x}" if exit_.exit_reason else "none",
            "unprotect": f"{o.unprotect.arg:#x}" if o.unprotect.called else "no",
            "emulation": f"type {emulation.emulation_type:#x} ({told}) at {emulation.addr:#x}"
            if emulation.called else "no",
            "statistics": ", ".join(f"{name} +{n}" for name, n in zip(o.stats._fields, o.stats, strict=True) if n)
            or "none",
            "MMIO cache afterwards": show(o.mmio.cache),
        }.items()
    }  # fmt: skip


USUAL = ("none", "no", "not taken", "not asked", "all 0")
"""Results of which nothing more is to be said."""


def _changes(now: Mapping[str, Facts], last: Mapping[str, Facts]) -> Iterator[object]:
    """Yield what is not as it was, named, part by part."""
    if now == last:
        yield "nothing changed by the last setting"
        return
    for part, facts in now.items():
        names = [name for name, cells in facts.items() if last[part].get(name, cells) != cells]
        new = [name for name in facts if name not in last[part]]
        gone = [name for name in last[part] if name not in facts]
        if part == "struct" and (new or gone):
            names, new, gone = ["now there" if len(facts) > len(last[part]) else "no longer there"], [], []
        if part == "path" and names:
            names = [f"{len(names)} steps"] if len(names) > 1 else names
        told = [", ".join(names)] if names else []
        told += [f"new: {', '.join(new)}"] if new else []
        told += [f"gone: {', '.join(gone)}"] if gone else []
        if told:
            yield join([changed(f"{part}: "), "; ".join(told)])


def _marked(now: Facts, last: Facts) -> Iterator[list[object]]:
    """Yield rows; the first cell of one that is not as it was is marked, and what changed in it is bold."""
    for key, cells in now.items():
        before = last.get(key, ("",) * len(cells))
        first, *rest = cells
        yield [
            changed(first, cells != before),
            *(bold(cell) if cell != old else cell for cell, old in zip(rest, before[1:], strict=True)),
        ]
