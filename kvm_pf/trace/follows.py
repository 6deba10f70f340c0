# SPDX-License-Identifier: GPL-2.0-only
"""What should have followed a fault, by the fault path's own functions, and whether it did.

A trace does not tell everything that the path reads: the handler's answer, the kind of VM, the page's attributes
unless a conversion was seen, the MMIO entry that a walk finds.  These are inputs here: the path is run with every
value that each can have, and what comes out is the set of endings that the model allows.  A trace disagrees if what
followed is none of them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from kvm_pf.bits import (
    PFERR_GUEST_ENC_MASK,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_SYNTHETIC_MASK,
)
from kvm_pf.faultin import ACC_ALL
from kvm_pf.mmio import MMIO_EPT, MMIO_NPT, make_mmio_spte, mmio_format
from kvm_pf.revisions import Revision, get
from kvm_pf.run.inputs import answer, answers
from kvm_pf.state import (
    EFAULT,
    KVM_EXIT_MEMORY_FAULT,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
)
from kvm_pf.trace.faults import STAGE, kinds, marks, of_faults, table
from kvm_pf.trace.record import STALE, WAITS
from kvm_pf.trace.release import Signs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MOST = 256
"""Different questions (code, declared attribute, nesting) that are asked of the model; faults beyond get no answer."""

_GENERATION = 0x15
"""The memslots' generation that the path is run with: the tables' default."""

_KINDS = {"npf": "npf", "ept": "ept", "misconfig": "miscfg", "pf": "pf"}

_WALKS = {
    "no MMIO entry is there": None,
    "an MMIO entry is there": _GENERATION,
    "an MMIO entry is there that is older than the memslots": _GENERATION + 2,
}

ENDS = {
    "handled": "the guest goes on",
    "goes on": "the guest goes on, and nothing is mapped",
    "emulated": "the instruction is emulated",
    "fast MMIO": "the fast-MMIO bus takes the write",
    "memory fault, private": "KVM_EXIT_MEMORY_FAULT, to make the page private",
    "memory fault, shared": "KVM_EXIT_MEMORY_FAULT, to make the page shared",
    "error": "an error to user space",
}
"""The endings that the path has, in words."""


class Question(NamedTuple):
    """What a trace tells the model of a fault.

    `kind` of exit, `codes` (several if it was cut), whether the exit's handler has seen them already, whether the page
    was declared private (None: not seen), whether L2 ran, and whether kvm_page_fault showed bit 49 (None: it is not
    there, or the code has no bit 34).
    """

    kind: str
    codes: tuple[int, ...]
    handled: bool
    declared: bool | None
    nested: bool
    marked: bool | None = None


class Expected(NamedTuple):
    """The model's answer: the error codes at kvm_mmu_page_fault(), and each ending with the inputs it takes.

    `traced` holds the codes that the tracepoint kvm_page_fault shows, `inputs` names those inputs that the trace does
    not tell and that make a difference.
    """

    codes: frozenset[int]
    traced: frozenset[int]
    ends: dict[str, str]
    inputs: tuple[str, ...]

    @property
    def words(self) -> str:
        """The endings, each with what it takes."""
        return "; ".join(f"{ENDS[end]}{f' ({given})' if given else ''}" for end, given in self.ends.items())


def question(row: Any) -> Question | None:
    """Make the question that a fault (a row of a table of `read`) asks; None if the path is not about it."""
    kind = _KINDS.get(row.encoding)
    if kind is None or row.source in ("guest_pf", "hvf", "memory_fault"):
        return None
    declared = None if row.declared is None else bool(row.declared)
    nested = bool(row.nested)
    if kind == "miscfg":
        return Question(kind, (0,), False, declared, nested)
    if row.exit_code is not None:
        marked = None
        if row.traced and kind == "npf" and row.exit_code & PFERR_GUEST_ENC_MASK and row.raw_code is not None:
            marked = bool(row.raw_code & PFERR_PRIVATE_ACCESS)
        return Question(kind, (row.exit_code,), False, declared, nested, marked)
    if row.raw_code is None:
        return None
    code = row.raw_code
    if row.cut and row.error_code is None:
        return Question(kind, tuple(code | stage for stage in _STAGES), False, declared, nested)
    if row.cut:
        code = row.error_code
    return Question(kind, (code,), bool(code & PFERR_SYNTHETIC_MASK), declared, nested)


_STAGES = tuple(1 << n for n in range(64) if STAGE >> n & 1)


_KEPT: WeakKeyDictionary[Revision, dict[Question, Expected]] = WeakKeyDictionary()
"""What the path of a revision answered, for the next trace, which mostly asks the same."""


class Model:
    """The path of one revision, asked about faults; each question is asked once."""

    def __init__(self, revision: Revision | str = "posted") -> None:
        self.revision = get(revision)
        self.known: dict[Question, Expected] = {}
        self._faultin: dict[tuple[int, int], set[tuple[int, int]]] = {}

    def ask(self, questions: Iterable[Question | None]) -> None:
        """Find the answers to questions that are not known yet, as long as there are no more than MOST."""
        new = [q for q in dict.fromkeys(questions) if q is not None and q not in self.known]
        new = new[: max(0, MOST - len(self.known))]
        kept = _KEPT.setdefault(self.revision, {})
        if len(kept) > 16 * MOST:
            kept.clear()
        if unasked := [q for q in new if q not in kept]:
            self._faultin = self._faultin or self._answers_of_faultin()
            kept.update(zip(unasked, self._answers(unasked), strict=True))
        self.known.update((q, kept[q]) for q in new)

    def _answers(self, questions: list[Question]) -> list[Expected]:
        import pandas as pd

        from kvm_pf.run.batch import evaluate

        left, codes, traced = self._exits(questions)
        rows: list[tuple[int, int, int, str, int, str]] = []
        for n, q in enumerate(questions):
            attributes = (0, 1) if q.declared is None or q.kind == "pf" else (int(q.declared),)
            for code in codes[n]:
                vms = self._kinds_of_vm(q.kind, code)
                walks = _WALKS if code & PFERR_RSVD_MASK else list(_WALKS)[:1]
                for vm, ret, walk in itertools.product(vms, self._handler(), walks):
                    # A VM without private memory has no attributes, whatever was asked for in the trace.
                    for private in (0,) if vm == "default" else attributes:
                        rows.append((n, code, private, vm, ret, walk))
        frame = pd.DataFrame(rows, columns=["n", "error_code", "private", "vm_type", "pf_ret", "walk"])
        formats = [_MMIO[questions[n].kind] for n in frame["n"]]
        given = frame[["error_code", "vm_type", "pf_ret"]].assign(
            attrs=frame["private"] * KVM_MEMORY_ATTRIBUTE_PRIVATE,
            mode=[_mode(questions[n]) for n in frame["n"]],
            mmio_cfg=formats,
            walk_leaf=[-1 if _WALKS[walk] is None else 1 for walk in frame["walk"]],
            spte1=[_spte(*each) for each in zip(frame["walk"], formats, strict=True)],
            gen=_GENERATION,
        )
        outs = evaluate(given, self.revision).itertuples()
        for (n, code, private, vm, ret, walk), out in zip(rows, outs, strict=True):
            inputs = {
                "the handler's answer": f"the handler answers {answer(ret, self.revision)}" if out.pf_called else "",
                "the kind of VM": f"the VM is {vm}", "the MMIO entry": walk,
            }  # fmt: skip
            if vm != "default":
                inputs["the page's attribute"] = f"the page is {'private' if private else 'shared'}"
            left[n] += [(end, inputs) for end in self._ends(out, code, private, ret)]
        return [_expected(codes[n], traced[n], left[n]) for n in range(len(questions))]

    def _kinds_of_vm(self, kind: str, code: int) -> tuple[str, ...]:
        """Name the kinds of VM that such a code can be of: encrypted is SEV's (of the default kind here) or SNP's."""
        if code & PFERR_PRIVATE_ACCESS:
            return ("snp",)
        if code & PFERR_GUEST_ENC_MASK:
            return ("default",) if marks(self.revision) else ("default", "snp")
        return "default", "sw-protected", *(("snp",) if kind == "npf" else ())

    def _exits(self, questions: list[Question]) -> tuple[list[list[_Way]], list[list[int]], list[list[int]]]:
        """Run the exits' handlers: the endings that never come to the MMU, the codes that it gets, those traced."""
        import pandas as pd

        from kvm_pf.run.batch import evaluate

        left: list[list[_Way]] = [[] for _ in questions]
        codes: list[list[int]] = [list(q.codes) if q.handled else [] for q in questions]
        traced: list[list[int]] = [list(q.codes) if q.handled else [] for q in questions]
        rows = [
            (n, q.kind, code, bus, int(snp), int(q.nested))
            for n, q in enumerate(questions) if not q.handled for code in q.codes
            for snp in self._snp(q, code)
            for bus in ((0, 1) if q.kind == "miscfg" or code & PFERR_RSVD_MASK else (0,))
        ]  # fmt: skip
        if not rows:
            return left, codes, traced
        frame = pd.DataFrame(rows, columns=["n", "kind", "info", "aux_flag", "snp_guest", "guest_mode"])
        outs: Any = evaluate(frame.drop(columns="n"), self.revision, kind="sources").itertuples()
        for (n, _, _, bus, _, _), out in zip(rows, outs, strict=True):
            traced[n] += (
                [out.trace_error_code] if out.traced and out.trace_error_code not in traced[n] else []
            )
            if out.mmu_called:
                codes[n] += [out.mmu_error_code] if out.mmu_error_code not in codes[n] else []
            elif out.ret > 0:
                end = "fast MMIO" if out.fast_mmio else "goes on"
                left[n].append((end, {"the bus": "the bus takes it" if bus else ""}))
        return left, codes, traced

    def _snp(self, q: Question, code: int) -> tuple[bool, ...]:
        """Say of which guests an exit can be: SNP's or not."""
        if q.kind != "npf" or not code & PFERR_GUEST_ENC_MASK:
            return (False,)
        if q.marked is None or not marks(self.revision):
            return False, True
        return (q.marked,)

    def _handler(self) -> list[int]:
        """The answers that the page-fault handler can give: -EFAULT stands for every error."""
        known = answers(self.revision)
        return [known[name] for name in known if name not in ("CONTINUE", "INVALID")] + [-EFAULT]

    def _answers_of_faultin(self) -> dict[tuple[int, int], set[tuple[int, int]]]:
        """Run kvm_faultin_pfn() over slots and invalidations: (is_private, attribute) → results, flags of the exit."""
        import pandas as pd

        from kvm_pf.run.batch import evaluate

        rows = list(itertools.product((0, 1), (0, 1), ("none", "user", "user_gmem"), ("none", "covers_gfn")))
        frame = pd.DataFrame(rows, columns=["is_private", "attribute", "slot_kind", "invalidation"])
        given = frame.drop(columns="attribute").assign(
            attrs=frame["attribute"] * KVM_MEMORY_ATTRIBUTE_PRIVATE
        )
        found: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
        outs: Any = evaluate(given, self.revision, kind="faultin").itertuples()
        for (is_private, attribute, _, _), out in zip(rows, outs, strict=True):
            flags = int(out.mf_flags) if out.exit_reason == KVM_EXIT_MEMORY_FAULT else -1
            found[is_private, attribute].add((int(out.ret), flags))
        return found

    def _ends(self, out: Any, code: int, private: int, ret: int) -> list[str]:
        """Name the endings of a run of the path; none if the handler cannot answer so."""
        if out.emu_called:
            end = "emulated"
        elif out.exit_reason == KVM_EXIT_MEMORY_FAULT:
            end = _memory_fault(out.mf_flags)
        else:
            end = "error" if out.ret < 0 else "handled" if out.pf_called else "goes on"
        if not out.pf_called:
            return [end]
        faultin = self._faultin[int(out.f_is_private), private]
        if ret == -EFAULT:
            return [
                "error",
                *{_memory_fault(flags) for result, flags in faultin if result < 0 and flags >= 0},
            ]
        results = {result for result, _ in faultin}
        known = answers(self.revision)
        # Only a write meets write protection: Linux `arch/x86/kvm/mmu/mmu.c`, page_fault_handle_page_track(),
        # mmu_set_spte() (v6.12).
        if ret == known.get("WRITE_PROTECTED") and not out.f_write:
            return []
        # A present page is not always faulted in: the fast path, and page tracking, come before.
        is_possible = known["CONTINUE"] in results or ret in results or code & PFERR_PRESENT_MASK
        return [end] if is_possible else []


_Way = tuple[str, dict[str, str]]
"""An ending, and the inputs that lead to it, in words, by what they are."""

_MMIO = {"npf": MMIO_NPT, "pf": MMIO_NPT, "ept": MMIO_EPT, "miscfg": MMIO_EPT}


_VMS = {
    "npf": ("default", "sw-protected", "snp"), "ept": ("default", "sw-protected"),
    "miscfg": ("default", "sw-protected"), "pf": ("default",),
}  # fmt: skip
"""The kinds of VM in which such exits come; a VM with private memory needs TDP.

Source: Linux `arch/x86/kvm/x86.c`, kvm_is_vm_type_supported() (v6.8).
"""


def _mode(q: Question) -> str:
    if q.kind == "pf":
        return "l2_shadow" if q.nested else "shadow"
    return "l2_ntdp" if q.nested else "tdp"


def _spte(walk: str, mmio_cfg: int) -> int:
    generation = _WALKS[walk]
    return (
        0
        if generation is None
        else make_mmio_spte(mmio_format(mmio_cfg, True), generation, 0x100000, ACC_ALL)
    )


def _memory_fault(flags: int) -> str:
    return f"memory fault, {'private' if flags & KVM_MEMORY_EXIT_FLAG_PRIVATE else 'shared'}"


def _expected(codes: Iterable[int], traced: Iterable[int], ways: list[_Way]) -> Expected:
    """Put the runs together: for each ending what the inputs must be, where others lead elsewhere."""
    every: dict[str, dict[str, None]] = defaultdict(dict)
    ends: dict[str, dict[str, dict[str, None]]] = {}
    for end, inputs in ways:
        for name, said in inputs.items():
            every[name][said] = None
            ends.setdefault(end, defaultdict(dict))[name][said] = None
    given, needed = {}, set()
    for end in [end for end in ENDS if end in ends]:
        parts = []
        for name, words in ends[end].items():
            if set(words) != set(every[name]) and "" not in words:
                parts.append(_or(list(words)))
                needed.add(name)
        given[end] = " and ".join(parts)
    return Expected(
        frozenset(codes), frozenset(traced), given, tuple(name for name in every if name in needed)
    )


def _or(words: list[str]) -> str:
    """Join "the VM is a" and "the VM is b" as "the VM is a or b"."""
    head = words[0].rsplit(" ", 1)[0]
    if len(words) > 1 and all(each.rsplit(" ", 1)[0] == head for each in words):
        return f"{head} {' or '.join(each.rsplit(' ', 1)[1] for each in words)}"
    return " or ".join(words)


# --- beside what the trace shows ---


def _seen(outcome: str | None) -> set[str] | None:
    """Say which of ENDS an outcome that a trace shows can be; None if it shows none, or something beyond the path."""
    if outcome is None:  # as a table of others may have it
        return None
    if outcome in ("resumed", WAITS, STALE):
        return {"handled", "goes on"}
    if outcome == "mapped":
        return {"handled"}
    if outcome == "fast MMIO":
        return {"fast MMIO"}
    if outcome.startswith(("emulat", "MMIO ", "to user space: KVM_EXIT_MMIO")):
        return {"emulated"}
    memory_faults = {"memory fault, private", "memory fault, shared"}
    if outcome == "to user space: KVM_EXIT_MEMORY_FAULT":
        return memory_faults
    if outcome == f"to user space: error {EFAULT}":
        return {"error", *memory_faults}
    if outcome.startswith("to user space: error"):
        return {"error"}
    return None


_FOLLOWS = {
    "line": "Int64", "expected": "string", "seen": "string", "agrees": "boolean", "not_in_trace": "string",
    "again": "Int64", "what": "string",
}  # fmt: skip


def follows(faults: pd.DataFrame, revision: Revision | str | Model | None = None) -> pd.DataFrame:
    """Say for each fault what should have followed, and whether it did: a table with the index of `faults`.

    `faults` is a table from `read`; `revision` the kernel whose path is asked (or a Model that has been asked before),
    without it the one that the table shows, else the patch as posted.
    Columns: `line`; `expected`, the endings that the path allows, each with the inputs it takes, or the code that it
    gives where another was recorded; `seen`, how the fault ended in the trace, or that other code; `agrees`, NA if the
    trace does not show that or the path is not about it; `not_in_trace`, the inputs that would decide; `again`, how
    many times in a row the very same fault (task, rip, page, code) had come before; `what` says a disagreement in
    words.
    """
    with of_faults(faults):
        codes, _, said = compared(
            faults, revision if isinstance(revision, Model) else _model(faults, revision)
        )
        columns: dict[str, list[Any]] = {name: [said[n][name] for n in codes] for name in _SAID}
        columns |= {"line": faults["line"].tolist(), "again": faults["again"].tolist()}
        found = table({name: columns[name] for name in _FOLLOWS}, _FOLLOWS)
        found.index = faults.index
        return found


def _model(faults: pd.DataFrame, revision: Revision | str | None) -> Model:
    signs = Signs(revision)
    signs.look_at_table(faults)
    return Model(signs.read_as().revision)


def compared(
    faults: pd.DataFrame, model: Model
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[dict[str, Any]]]:
    """Ask the model about each kind of fault of a table: each fault's kind, its first place, what is said of it."""
    if "traced" not in faults:  # a table of others
        faults = faults.assign(traced=None)
    codes, first = kinds({name: faults[name].array for name in _ASKED})
    asked = faults[list(_ASKED)].iloc[first].astype(object)
    rows = list(asked.where(asked.notna(), None).itertuples(index=False))
    questions = [question(row) for row in rows]
    model.ask(questions)
    return codes, first, [_compare(row, q, model) for row, q in zip(rows, questions, strict=True)]


_ASKED = (
    "encoding", "source", "raw_code", "exit_code", "traced", "cut", "error_code", "handler_code", "declared", "nested",
    "private", "outcome",
)  # fmt: skip
_SAID = ("expected", "seen", "agrees", "not_in_trace", "what")


def _compare(row: Any, q: Question | None, model: Model) -> dict[str, Any]:
    """Answer for one kind of fault: the columns of _SAID."""
    said: dict[str, Any] = {**dict.fromkeys(_SAID), "seen": row.outcome}
    expected = model.known.get(q) if q is not None else None
    if expected is None:
        return said
    said |= {"expected": expected.words, "not_in_trace": ", ".join(expected.inputs)}
    code = row.exit_code if row.exit_code is not None else row.raw_code
    of = "an EPT misconfiguration" if code is None else f"{code:#x}"
    if row.handler_code is not None and row.handler_code not in expected.codes:
        return said | _another_code(of, "the MMU gets", row.handler_code, expected.codes)
    # a table of others may not hold the exit's code
    traced = None if row.cut or row.exit_code is None else row.raw_code
    if traced is not None and traced not in {row.exit_code, *expected.traced}:
        return said | _another_code(of, "kvm_page_fault shows", row.raw_code, expected.traced)
    if (seen := _seen(row.outcome)) is not None:
        said["agrees"] = bool(seen & set(expected.ends))
        if not said["agrees"]:
            ends = " or ".join(ENDS[end] for end in expected.ends)
            said["what"] = f"{row.outcome}; should have followed: {ends}"
    return said


def _another_code(of: str, where: str, seen: int, expected: Iterable[int]) -> dict[str, Any]:
    """Say that another code was seen than follows."""
    codes = " or ".join(f"{code:#x}" for code in sorted(expected)) or "nothing"
    return {
        "agrees": False, "expected": f"{where} {codes}", "seen": f"{where} {seen:#x}",
        "what": f"{where} {seen:#x}; of {of} follows {codes}",
    }  # fmt: skip
