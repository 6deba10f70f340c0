# SPDX-License-Identifier: GPL-2.0-only
"""The error-code explorer: a code as digits, names and bits, and what each revision does with it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from kvm_pf.bits import PFERR, TABLES, decode, describe
from kvm_pf.common.text import bit_names
from kvm_pf.common.typed import typed
from kvm_pf.entry import ROUTES, TO_FAULT
from kvm_pf.exits import KIND_NPF, SOURCE_WARN_NAMES, Event
from kvm_pf.revisions import ROWS, Revision, get
from kvm_pf.run.inputs import case_state, case_values
from kvm_pf.run.watch import warn_names
from kvm_pf.show.markup import Html, bold, breakable, changed, cited, code, details, element, table
from kvm_pf.show.widgets.bits import BitGrid, layout
from kvm_pf.show.widgets.panel import Panel, choice, read_code, text_box
from kvm_pf.state import Vcpu

KERNELS = tuple(row.name for row in ROWS if row.vectors)
"""The revisions that are asked: those whose kernel's own functions were asked, too."""

ADDRESS = 0x100000000

ENCODINGS = {"pferr": "page-fault error code", "ept": "EPT exit qualification"}


class Ask(NamedTuple):
    """A state in which revisions are asked about a code."""

    title: str
    state: tuple[tuple[str, object], ...]


ASKED = (
    Ask("if kvm_mmu_page_fault() gets it: default VM", ()),
    Ask("the same: software-protected VM, private page", (("vm_type", "sw-protected"), ("private", True))),
)


@typed(code=64)
def error_code_explorer(
    code: int | str = 0, encoding: Literal["pferr", "ept"] = "pferr"
) -> ErrorCodeExplorer:
    """Return the explorer, set to `code` (u64, hexadecimal text or names of bits) in `encoding`: pferr or ept.

    Raises InputError if the code or the encoding is none.
    """
    return ErrorCodeExplorer(code, encoding)


class ErrorCodeExplorer(Panel):
    """A code: `code` (u64) in `encoding`.  Controls: code, encoding, bits."""

    def __init__(self, code: int | str, encoding: str) -> None:
        self.encoding = encoding
        self.code = code if isinstance(code, int) else read_code(code, TABLES[encoding])
        controls = {
            "code": text_box("code", "hexadecimal digits, or names such as WRITE|USER; Enter takes it"),
            "encoding": choice(
                "read as",
                "what kind of code the number is",
                [(text, name) for name, text in ENCODINGS.items()],
                encoding,
            ),
            "bits": BitGrid(TABLES[encoding], _title(encoding), self.code),
        }
        self._before: dict[str, list[str]] = {}
        self._answers: dict[str, list[str]] = {}
        super().__init__(controls, list(controls.values()))
        with self.quiet():
            self._show()

    def react(self, name: str) -> None:
        """Take over the code, the encoding, or the bits."""
        if name == "code":
            self.code = read_code(self.controls["code"].value, TABLES[self.encoding])
        elif name == "encoding":
            self.encoding = self.controls["encoding"].value
            self.controls["bits"].bits = TABLES[self.encoding]
            self.controls["bits"].description = _title(self.encoding)
        else:
            self.code = self.controls["bits"].number
        self._show()

    def _show(self) -> None:
        self.controls["code"].value = f"{self.code:#x}"
        self.controls["bits"].number = self.code
        self._before = self._answers
        self._answers = {name: answer(name, self.encoding, self.code) for name in KERNELS}
        self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield the code, what the revisions do with it, and what its bits mean."""
        names = TABLES[self.encoding]
        yield element("p", code(f"{self.code:#x}"), " = ", describe(self.code, names))
        npf, ept = "if #NPF reports it: its handler", "becomes the error code"
        heads = ("revision", npf if self.encoding == "pferr" else ept, *(ask.title for ask in ASKED))
        yield table("what each revision does with it", heads, self._alike())
        told = decode(self.code, names)
        rows = [(row.bit, bold(row.label), row.set_by.value, row.means) for row in told]
        yield table(
            "bits that are set", ("bit", "name", "set by", "meaning"), rows or [("none", *("–",) * 3)]
        )
        if sources := {row.source: None for row in told if row.source}:
            yield details("where the meanings were read", *(element("p", cited(each)) for each in sources))
        if self.encoding == "ept":
            made = _error_code(get("posted"), self.code)
            yield layout(made, PFERR, f"the error code it becomes (posted): {made:#x} = {describe(made)}")

    def _alike(self) -> Iterator[list[object]]:
        """Yield the answers, those of revisions that give the same ones in one row; ▲: not what it was before."""
        rows: dict[tuple[str, ...], list[str]] = {}
        for name, cells in self._answers.items():
            rows.setdefault(tuple(cells), []).append(name)
        for same, names in rows.items():
            before = [self._before.get(name, list(same)) for name in names]
            told = [
                changed(breakable(cell), any(was[n] != cell for was in before)) for n, cell in enumerate(same)
            ]
            yield [bold(breakable(", ".join(names))), *told]

    def __repr__(self) -> str:
        return f"error_code_explorer({self.code:#x}, {self.encoding!r})"


def _title(encoding: str) -> str:
    return f"the 64 bits, as {ENCODINGS[encoding]}"


@cache
def _state(revision: Revision, ask: Ask) -> Vcpu:
    return case_state(case_values(revision, **dict(ask.state)), revision)


def _error_code(revision: Revision, qualification: int) -> int:
    made: int = revision.link("ept_error_code")(qualification, False, False)
    return made


def answer(name: str, encoding: str, given: int) -> list[str]:
    """Ask one revision: what reaches kvm_mmu_page_fault(), and what that does with it in each of ASKED."""
    revision = get(name)
    if encoding == "ept":
        given = _error_code(revision, given)
        first = f"{given:#x} {describe(given)}"
    else:
        npf: Any = revision.link("npf_interception")(Event(KIND_NPF, given, ADDRESS))
        warned = bit_names(npf.warns, SOURCE_WARN_NAMES)
        first = _told(given, npf.mmu.error_code, warned) if npf.mmu.called else "nothing"
    return [first, *(_way(revision, ask, given) for ask in ASKED)]


def _told(before: int, after: int, warned: str) -> str:
    """Say what became of a code."""
    told = [f"WARN ({warned})"] if warned else []
    told += [f"drops {describe(before & ~after)}"] if before & ~after else []
    told += [f"sets {describe(after & ~before)}"] if after & ~before else []
    return ", ".join(told) or "unchanged"


def _way(revision: Revision, ask: Ask, given: int) -> str:
    """Say what a revision drops, sets and cuts off on the way to its handler, and whose memory it then takes it for."""
    vcpu = _state(revision, ask)
    way: Any = revision.link("route")(vcpu.mmu, vcpu.vm, ADDRESS, given)
    sanitized, _ = revision.link("sanitize")(given)
    told = _told(given, sanitized, warn_names(way.warns))
    if way.error_code != sanitized:
        told = f"{told}, {_told(sanitized, way.error_code, '')}".removeprefix("unchanged, ")
    if way.to != TO_FAULT:
        return f"{told} → {ROUTES[way.to]}"
    err: int = revision.link("handler_error_code")(way.error_code)
    cut = f", {describe(way.error_code & ~err)} cut off" if err != way.error_code else ""
    private, _ = revision.link("is_private")(vcpu.vm, ADDRESS, err)
    return f"{told}{cut} → fault, {'private' if private else 'shared'}"
