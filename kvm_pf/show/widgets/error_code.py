# SPDX-License-Identifier: GPL-2.0-only
"""The error-code explorer: a code as digits, names and bits, and what each revision does with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from ipywidgets import HTML, Box, Checkbox, Layout, VBox

from kvm_pf.bits import PFERR, TABLES, Bit, decode, describe
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import bit_names
from kvm_pf.entry import ROUTES, TO_FAULT
from kvm_pf.exits import KIND_NPF, SOURCE_WARN_NAMES, Event
from kvm_pf.revisions import ROWS, Revision, get
from kvm_pf.run.inputs import case_state, case_values
from kvm_pf.run.watch import warn_names
from kvm_pf.show.markup import Html, bold, cited, code, element, join, table
from kvm_pf.show.widgets.panel import Panel, choice, line, read_code, text_box
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


def error_code_explorer(code: int | str = 0, encoding: str = "pferr") -> ErrorCodeExplorer:
    """Return the explorer, set to `code` (u64, hexadecimal text or names of bits) in `encoding`: pferr or ept.

    Raises InputError if the code or the encoding is none.
    """
    return ErrorCodeExplorer(code, encoding)


class ErrorCodeExplorer(Panel):
    """A code: `code` (u64) in `encoding`.  Controls: code, encoding; and `bits`, 64 of them, by position."""

    def __init__(self, code: int | str, encoding: str) -> None:
        if encoding not in ENCODINGS:
            raise InputError(f"encoding={encoding!r}: it takes one of {', '.join(ENCODINGS)}")
        self.encoding = encoding
        self.code = read_code(f"{code:x}" if isinstance(code, int) else code, TABLES[encoding])
        controls = {
            "code": text_box("code", "hexadecimal digits, or names such as WRITE|USER; Enter takes it"),
            "encoding": choice(
                "read as",
                "what kind of code the number is",
                [(text, name) for name, text in ENCODINGS.items()],
                encoding,
            ),
        }
        look, style = Layout(width="auto", margin="0"), {"description_width": "initial"}
        self.bits = [Checkbox(indent=False, layout=look, style=style) for _ in range(64)]
        lanes = Layout(
            display="grid", grid_template_columns="repeat(8, minmax(max-content, 1fr))", grid_gap="0 8px",
            width="100%", overflow="auto", padding="0 0 0 3px",
        )  # fmt: skip
        lane_of = [
            VBox(
                [HTML(bold(f"bits {top}–{top - 15}")), Box(self.bits[top - 15 : top + 1][::-1], layout=lanes)]
            )
            for top in (63, 47, 31, 15)
        ]
        super().__init__(controls, [line(*controls.values()), *lane_of])
        for n, control in enumerate(self.bits):
            control.observe(self._listen(f"bit{n}"), "value")
        with self.quiet():
            self._name_bits()
            self._show()

    def react(self, name: str) -> None:
        """Take over the code, the encoding, or one bit."""
        if name == "code":
            self.code = read_code(self.controls["code"].value, TABLES[self.encoding])
        elif name == "encoding":
            self.encoding = self.controls["encoding"].value
            self._name_bits()
        else:
            self.code ^= 1 << int(name.removeprefix("bit"))
        self._show()

    def _name_bits(self) -> None:
        known = {row.bit: row for row in TABLES[self.encoding]}
        for n, control in enumerate(self.bits):
            row = known.get(n)
            with control.hold_sync():
                control.description = f"{n} {row.name}".rstrip() if row else str(n)
                control.tooltip = f"bit {n}: {row.means}" if row else f"bit {n}: no meaning here"

    def _show(self) -> None:
        self.controls["code"].value = f"{self.code:#x}"
        for n, control in enumerate(self.bits):
            control.value = bool(self.code >> n & 1)
        self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield the code, its bits, and what the revisions do with it."""
        names = TABLES[self.encoding]
        yield element("p", code(f"{self.code:#x}"), " = ", describe(self.code, names))
        yield layout(self.code, names, f"the 64 bits, as {ENCODINGS[self.encoding]}")
        rows = [
            (row.bit, bold(row.label), row.set_by.value, row.means, cited(row.source) or "–")
            for row in decode(self.code, names)
        ]
        yield table(
            "bits that are set",
            ("bit", "name", "set by", "meaning", "source"),
            rows or [("none", *("–",) * 4)],
        )
        answers = [answer(name, self.encoding, self.code) for name in KERNELS]
        npf, ept = "if #NPF reports it: its handler", "becomes the error code"
        heads = ("revision", npf if self.encoding == "pferr" else ept, *(ask.title for ask in ASKED))
        yield table("what each revision does with it", heads, answers)
        if self.encoding == "ept":
            made = _error_code(get("posted"), self.code)
            yield layout(made, PFERR, f"the error code it becomes (posted): {made:#x} = {describe(made)}")

    def __repr__(self) -> str:
        return f"error_code_explorer({self.code:#x}, {self.encoding!r})"


def layout(value: int, names: Sequence[Bit], title: str) -> Html:
    """Draw 64 bits, eight to a row; of a row in which nothing is known or set it says only that."""
    known = {row.bit: row for row in names}
    rows = []
    for top in range(63, 0, -8):
        cells = range(top, top - 8, -1)
        if any(n in known or value >> n & 1 for n in cells):
            rows.append([f"{top}–{top - 7}", *(_cell(n, value, known.get(n)) for n in cells)])
        else:
            rows.append([f"{top}–{top - 7}", element("td", "none known, none set", colspan="8")])
    return table(title, (), rows, "bits")


def _cell(n: int, value: int, row: Bit | None) -> Html:
    name = join(row.name.split("_"), Html("_<wbr>")) if row else ""
    if value >> n & 1:
        return element("td", bold(join([f"{n} ■ ", name])), class_="on")
    return element("td", f"{n} □ ", name)


@cache
def _state(revision: Revision, ask: Ask) -> Vcpu:
    return case_state(case_values(revision, **dict(ask.state)), revision)


def _error_code(revision: Revision, qualification: int) -> int:
    made: int = revision.link("ept_error_code")(qualification, False, False)
    return made


def answer(name: str, encoding: str, given: int) -> list[object]:
    """Ask one revision: what reaches kvm_mmu_page_fault(), and what that does with it in each of ASKED."""
    revision = get(name)
    if encoding == "ept":
        given = _error_code(revision, given)
        first: object = join([code(f"{given:#x}"), " ", describe(given)])
    else:
        npf: Any = revision.link("npf_interception")(Event(KIND_NPF, given, ADDRESS))
        warned = bit_names(npf.warns, SOURCE_WARN_NAMES)
        first = _told(given, npf.mmu.error_code, warned) if npf.mmu.called else "nothing"
    return [bold(name), first, *(_way(revision, ask, given) for ask in ASKED)]


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
