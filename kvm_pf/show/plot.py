# SPDX-License-Identifier: GPL-2.0-only
"""Pictures of faults: drawn from the tables, records and functions that everything else uses.

Every function takes `ax`.  Given one, it draws there, to that size, and returns it; without, it makes a Figure
of its own and returns that.  What matters is told twice, by colour and by hatch, weight or word.  No setting of
matplotlib is changed, and pyplot is not used, so that a callback may draw beside a running cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, count, groupby, pairwise, product
from math import nan
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from kvm_pf.bits import EPT, NOBODY, PFERR, PFERR_RSVD_MASK, U64_MASK, Bit, Origin
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.entry import REFUSED, ROUTES, TO_FAULT, TO_MMIO, TO_RETRY
from kvm_pf.guest.attribute_store import AttributeStore
from kvm_pf.guest.memslots import Memslot
from kvm_pf.mmio import update_in_progress
from kvm_pf.revisions import Revision, get
from kvm_pf.run.inputs import brief, parse
from kvm_pf.run.tables import Input
from kvm_pf.run.watch import WAYS, Explanation, Record
from kvm_pf.show.draw import (
    Margins,
    Paper,
    Picture,
    axis_labels,
    chart,
    drawing,
    filled_with,
    font_of,
    inner_key,
    png,
    text_beside,
    text_width,
    wrap,
)
from kvm_pf.show.inks import BLUE, GREEN, INK, ORANGE, ORIGINS, PALE, PAPER, PINK, RED, SKY, SOFT, WASH, Ink
from kvm_pf.state import KVM_MEMORY_ATTRIBUTE_PRIVATE, Fault

if TYPE_CHECKING:
    import pandas as pd


__all__ = (
    "Picture", "bit_changes", "bit_counts", "bit_layout", "decision_path", "ept_terms", "ept_wiring",
    "memory_strip", "mmio_generation", "mmio_spte_layout", "png", "spte_fields",
)  # fmt: skip


def _u64(what: str, value: int) -> int:
    number = value.__index__() if hasattr(value, "__index__") else -1
    if not 0 <= number <= U64_MASK:
        raise InputError(f"{what}={value!r}: it takes an unsigned 64-bit number")
    return number


# ----------------------------------------------------------------------------------------------------
# 64 bits in lanes


class _Cell(NamedTuple):
    """One of 64 bits; `mark` is ▲ or ▼ or both for a bit that changed, `step` what changed it."""

    on: bool
    name: str = ""
    ink: Ink | None = None
    mark: str = ""
    step: str = ""


_CELL = 1.55
_LANES_WIDTH = 14.0
_LEFT = 0.2


def _lanes_height(cells: Sequence[_Cell], tall: float) -> list[float]:
    """The height of each lane, with what stands below it; a lane without anything to say is low."""
    heights = []
    for lane in range(7, -1, -1):
        row = cells[8 * lane : 8 * lane + 8]
        spoken = any(c.name or c.on or c.mark for c in row)
        heights.append((tall if spoken else 0.36) + (0.36 if any(c.mark for c in row) else 0.1))
    return heights


def _lanes(paper: Paper, y: float, cells: Sequence[_Cell], tall: float) -> float:
    """Draw 64 cells, most significant first, eight to a lane, with the byte's digits beside it; return the end."""
    beside = _LEFT + 8 * _CELL + 0.75
    paper.text(beside, y - 0.2, "hex", PALE)
    numbers: dict[str, list[tuple[float, float, int]]] = {PAPER: [], INK: [], PALE: []}
    for lane, height in zip(range(7, -1, -1), _lanes_height(cells, tall), strict=True):
        row = [(n, cells[n]) for n in range(8 * lane + 7, 8 * lane - 1, -1)]
        changed = any(c.mark for _, c in row)
        box = height - (0.36 if changed else 0.1)
        for column, (n, cell) in enumerate(row):
            _cell(paper, _LEFT + column * _CELL, y, box, n, cell)
            ink = PAPER if cell.on else INK if cell.name else PALE
            numbers[ink].append((_LEFT + column * _CELL + 0.1, y + min(0.19, box / 2), n))
        column = 0
        for (mark, step), run in groupby(row, key=lambda item: (item[1].mark, item[1].step)):
            length = len(list(run))
            if mark:
                free = [not row[n][1].mark if 0 <= n < 8 else False for n in (column - 1, column + length)]
                text = f"{mark} {step}".rstrip()
                _below(paper, _LEFT + column * _CELL, y + box + 0.18, length * _CELL, free, text)
            column += length
        byte = sum(c.on << n - 8 * lane for n, c in row)
        ink = INK if byte else PALE
        paper.text(beside, y + box / 2, f"{byte:02x}", ink, size=18, bold=byte != 0, mono=True, gid="hex")
        y += height
    for ink, places in numbers.items():
        paper.numbers(places, ink)
    return y


def _below(paper: Paper, x: float, y: float, width: float, free: list[bool], text: str) -> None:
    """Write which step changed the bits above; into the free room on one side if it is long."""
    at, side, room = x + width / 2, "center", width + (_CELL if all(free) else 0)
    if any(free) and text_width(text, bold=True) > room:
        at, side, room = *((x + width, "right") if free[0] else (x, "left")), width + 2 * _CELL
    paper.text(at, y, text, RED, bold=True, ha=side, gid="step", room=room)


def _cell(paper: Paper, x: float, y: float, height: float, n: int, cell: _Cell) -> None:
    """Draw one bit: black if it is 1, its name, a strip for its kind, and a frame if it changed."""
    fill, ink = (INK, PAPER) if cell.on else (PAPER, INK)
    edge = PAPER if cell.on else INK if cell.name else SOFT
    z = 2 if cell.name or cell.on else 1
    paper.box(x, y, _CELL, height, fill, edge, z=z, gid=f"bit:{n}:{int(cell.on)}")
    if cell.on:
        paper.text(x + _CELL - 0.1, y + 0.19, "1", PAPER, bold=True, ha="right")
    strip = 0.16 if cell.ink else 0
    if cell.ink:
        paper.box(x, y + height - strip, _CELL, strip, cell.ink.colour, hatch=cell.ink.hatch, z=2.1)
    if cell.name:
        lines = wrap(cell.name, _CELL - 0.16, 3, "_" if "_" in cell.name else " ", bold=cell.on)
        middle = y + 0.3 + (height - strip - 0.3) / 2
        va, text = "center" if len(lines) > 1 else "center_baseline", "\n".join(lines)
        paper.text(x + _CELL / 2, middle, text, ink, room=_CELL - 0.16, bold=cell.on, va=va, gid=f"name:{n}")
    if cell.mark:
        cleared = "▲" not in cell.mark
        paper.box(x, y, _CELL, height, "none", RED, weight=4, dashed=cleared, z=3, gid=f"changed:{n}")


def _legend(paper: Paper, y: float, inks: Mapping[str, Ink], note: str = "", x: float = _LEFT) -> None:
    """Draw a row of samples with their names, then a note."""
    for name, ink in inks.items():
        paper.swatch(x, y - 0.12, 0.5, 0.24, ink)
        paper.text(x + 0.6, y, name, ha="left", gid="legend")
        x += 0.6 + text_width(name) + 0.4
    paper.text(x, y, note, ha="left", gid="legend")


@drawing(code=64, before=64)
def bit_layout(
    code: int, *, before: int | None = None, table: Sequence[Bit] = PFERR, steps: Mapping[int, str] | None = None,
    title: str = "", ax: Axes | None = None,
) -> Figure | Axes:  # fmt: skip
    """Draw the 64 bits of a code: what each is called, who sets it, and which are set.

    `code` and `before` are u64; with `before`, the bits that changed on the way from it to `code` are framed and
    marked, and `steps` (see `bit_changes`) says by which step.  `table` gives names and origins.
    Raises InputError for a code that is no u64.
    """
    code = _u64("code", code)
    before = None if before is None else _u64("before", before)
    changed = 0 if before is None else before ^ code
    steps = {} if steps is None or before is None else steps
    if not all(isinstance(row, Bit) for row in table):
        raise InputError(f"{brief(table)} is no table of bits, such as PFERR")
    known = {row.bit: row for row in table}
    cells = []
    for n in range(64):
        row, on = known.get(n), bool(code >> n & 1)
        mark = ("▲" if on else "▼") if changed >> n & 1 else ("▼▲" if on else "▲▼") if n in steps else ""
        name = row.name if row and row.name else "no name" if row or on else ""
        cells.append(_Cell(on, name, ORIGINS[row.set_by] if row else None, mark, steps.get(n, "")))
    longest = max(len(wrap(cell.name, _CELL - 0.16, 3, "_ ")) for cell in cells)
    tall = 0.56 + 0.26 * max(2, longest)
    top = 1.15 if title else 0.7
    height = top + sum(_lanes_height(cells, tall)) + 0.55
    paper = Paper(ax, _LANES_WIDTH, height)
    if title:
        room = _LANES_WIDTH - 2 * _LEFT
        paper.text(_LEFT, 0.35, title, ha="left", size=20, bold=True, room=room, gid="title")
    shown = f"{code:#x}" if before is None else f"{before:#x} → {code:#x}"
    paper.text(_LEFT, top - 0.32, shown, ha="left", size=20, bold=True, mono=True, gid="value")
    end = _lanes(paper, top, cells, tall)
    setters = {row.set_by for row in table}
    origins = {origin.value: ink for origin, ink in ORIGINS.items() if origin in setters}
    note = "▲ set, ▼ cleared on the way" if any(cell.mark for cell in cells) else ""
    paper.text(_LEFT, end + 0.2, "set by", PALE, ha="left")
    _legend(paper, end + 0.2, origins, note, _LEFT + 0.95)
    return paper.result


@typed()
def bit_changes(explanation: Explanation) -> dict[int, str]:
    """Say for each bit of the error code that changed which step did it; the steps in order if several did."""
    found: dict[int, list[str]] = {}

    def visit(record: Record) -> int:
        inner = 0
        for each in record.inner:
            inner |= visit(each)
        if record.before is None or record.after is None:
            return inner
        own = (record.before ^ record.after) & ~inner
        for n in range(64):
            if own >> n & 1:
                found.setdefault(n, []).append(record.step)
        return inner | own

    for record in explanation.records:
        visit(record)
    return {n: ", ".join(names) for n, names in sorted(found.items())}


def _way(lit: bool) -> tuple[str, float, float, str]:
    """How a line is drawn that is part of the way taken, or not: colour, weight, order, and what it is called."""
    return (BLUE, 3.5, 0.9, "lit") if lit else (SOFT, 1.5, 0.5, "pale")


# ----------------------------------------------------------------------------------------------------
# The EPT qualification wired to the error code

_MBEC, _PRIVATE = 64, 65
_SWITCHES = {_MBEC: "MBEC", _PRIVATE: "private GPA"}
"""What the translation looks at besides the qualification's 64 bits."""

Term = dict[int, int]
"""Inputs with the values (0 or 1) that they must have together."""


def _translate(revision: Revision, inputs: int) -> int:
    function = revision.link("ept_error_code")
    return int(function(inputs & U64_MASK, inputs >> _MBEC & 1 != 0, inputs >> _PRIVATE & 1 != 0))


@cache
@typed()
def ept_terms(revision: Revision) -> dict[int, list[Term]]:
    """Find out what sets each bit of the error code, by running `revision`'s translation.

    Each bit that an EPT violation can set, with the terms of which any one is enough.  To see what depends on
    what, each input is flipped beside every choice of up to two of the named ones, set or clear.
    """
    named = [*(row.bit for row in EPT), *_SWITCHES]
    few = [sum(1 << n for n in chosen) for size in range(3) for chosen in combinations(named, size)]
    every = sum(1 << n for n in named)
    inputs: dict[int, set[int]] = {}
    for context in {*few, *(every ^ chosen for chosen in few)}:
        here = _translate(revision, context)
        for n in range(64 + len(_SWITCHES)):
            changed = here ^ _translate(revision, context ^ 1 << n)
            for output in range(64):
                if changed >> output & 1:
                    inputs.setdefault(output, set()).add(n)
    return {output: _terms(revision, output, sorted(needed)) for output, needed in sorted(inputs.items())}


def _terms(revision: Revision, output: int, inputs: list[int]) -> list[Term]:
    """The conditions on `inputs` that set `output`, each as short as can be, from its truth table."""
    every = list(product((0, 1), repeat=len(inputs)))
    words = [sum(on << n for n, on in zip(inputs, point, strict=True)) for point in every]
    points = {
        point for point, word in zip(every, words, strict=True) if _translate(revision, word) >> output & 1
    }
    found: list[Term] = []
    for size in range(len(inputs) + 1):
        for chosen in combinations(range(len(inputs)), size):
            for values in product((1, 0), repeat=size):
                need = dict(zip(chosen, values, strict=True))
                inside = {point for point in every if all(point[i] == v for i, v in need.items())}
                term = {inputs[i]: v for i, v in need.items()}
                if inside <= points and not any(other.items() <= term.items() for other in found):
                    found.append(term)
    return found


def _term_text(terms: Sequence[Term]) -> str:
    """Say in words what sets a bit."""

    def joined(term: Term) -> str:
        text = " and ".join(("" if on else "not ") + _SWITCHES.get(n, str(n)) for n, on in term.items())
        return f"({text})" if len(term) > 1 and len(terms) > 1 else text

    bits = sum(n < 64 for term in terms for n in term)
    text = f"bit{'s' if bits > 1 else ''} " * (bits > 0) + " or ".join(joined(term) for term in terms)
    only_absent = len(terms) == 1 and not any(terms[0].values())
    return f"unless {text.replace('not ', '')}" if only_absent else f"if {text}"


@drawing(qualification=64, gpa=64, direct_bits=64)
def ept_wiring(
    qualification: int, revision: str | Revision = "posted", *, gpa: int = 0x100000000, mbec: bool = False,
    direct_bits: int = 0, ax: Axes | None = None,
) -> Figure | Axes:  # fmt: skip
    """Draw the EPT exit qualification, wired to the page-fault error code that it becomes in `revision`.

    `qualification` and `gpa` are u64.  From 7.3, `mbec` says that EPT tells user from supervisor execution, and
    `direct_bits` is the gfn bit that says "shared" (TDX): then `gpa` decides as well.  The wires are those of
    `ept_terms`.  Raises InputError for a value that is no u64.
    """
    revision = get(revision)
    qualification = _u64("qualification", qualification)
    private = revision.link("vt_is_tdx_private_gpa")(_u64("direct_bits", direct_bits), _u64("gpa", gpa))
    given = qualification | mbec << _MBEC | private << _PRIVATE
    code = _translate(revision, given)
    terms = ept_terms(revision)
    used = {n for each in terms.values() for term in each for n in term}

    seen = [n for n in range(64) if n in used or qualification >> n & 1]
    left = {row.bit: row.label for row in EPT} | {n: _SWITCHES[n] for n in _SWITCHES if n in used}
    left |= {n: "no name" for n in seen if n not in left}
    right = {row.bit: row.name or "no name" for row in PFERR}
    right |= {n: "no name" for n in terms if n not in right}
    pitch, top = 0.5, 1.25
    rows = max(len(left), len(right))
    paper = Paper(ax, 14, top + rows * pitch + 0.55)
    x0, x1, x2, x3 = 0.2, 4.1, 7.3, 10.1
    paper.text(x0, 0.35, "exit qualification", PALE, ha="left")
    paper.text(x0, 0.78, f"{qualification:#x}", ha="left", size=20, bold=True, mono=True, gid="value")
    paper.text(x2, 0.35, f"error code, {revision.name}", PALE, ha="left")
    paper.text(x2, 0.78, f"{code:#x}", ha="left", size=20, bold=True, mono=True, gid="value")

    def column(
        names: Mapping[int, str], x: float, width: float, value: int, live: Iterable[int]
    ) -> dict[int, float]:
        places = {}
        for y, (n, name) in zip(count(top, pitch), sorted(names.items()), strict=False):
            on, ink = bool(value >> n & 1), INK if n in live else PALE
            fill, edge = (ink, ink) if on else (PAPER, INK if n in live else SOFT)
            paper.box(x, y, width, pitch - 0.08, fill, edge, gid=f"{'on' if on else 'off'}:{n}")
            places[n] = middle = y + (pitch - 0.08) / 2
            ink = PAPER if on else ink
            if n < 64:
                paper.text(x + 0.45, middle, str(n), ink, ha="right", bold=on)
            paper.text(x + 0.6, middle, name, ink, ha="left", bold=on, room=width - 0.7)
        return places

    starts = column(left, x0, x1 - x0, given, used)
    ends = column(right, x2, x3 - x2, code, terms)
    for output, each in terms.items():
        for term in each:
            live = all(given >> n & 1 == value for n, value in term.items())
            for n, value in term.items():
                colour, weight, z, word = _way(live)
                wire = [(x1, starts[n]), (x2 - (0 if value else 0.16), ends[output])]
                gid = f"{word}:{n}>{output}"
                paper.line(wire, colour, weight=weight, curve=True, dashed=not value, gid=gid, z=z)
                if not value:
                    paper.ring(x2 - 0.08, ends[output], 0.08, colour)
        ink = INK if code >> output & 1 else PALE
        paper.text(
            x3 + 0.15, ends[output], _term_text(each), ink, ha="left", room=13.7 - x3, gid=f"if:{output}"
        )
    note = "black: 1 · grey: 1, but not looked at" if given & ~sum(1 << n for n in used) else "black: 1"
    note += " · thick: what made it so"
    if any(not value for each in terms.values() for term in each for value in term.values()):
        note += " · dashed, with a ring: set by the bit being 0"
    paper.text(x0, top + rows * pitch + 0.25, note, PALE, ha="left")
    return paper.result


# ----------------------------------------------------------------------------------------------------
# One fault's path in the whole path

_L, _M, _R = (0.2, 3.65), (4.15, 7.6), (8.0, 10.15)
"""Columns: left and right edge."""

_PITCH, _HEIGHT, _TOP = 0.86, 0.56, 1.6


class _Node(NamedTuple):
    """A step, or an end; places in inches."""

    column: tuple[float, float]
    row: int
    label: str
    end: bool = False

    @property
    def x(self) -> float:
        return sum(self.column) / 2

    @property
    def top(self) -> float:
        return _TOP + self.row * _PITCH

    @property
    def y(self) -> float:
        return self.top + _HEIGHT / 2

    @property
    def low(self) -> float:
        return self.top + _HEIGHT


_MMIO, _DO = "handle_mmio_page_fault", "kvm_mmu_do_page_fault"

_NODES: Mapping[str, _Node] = {
    "sanitize": _Node(_M, 0, "sanitize"),
    "root_is_valid": _Node(_M, 1, "root_is_valid"),
    "no root": _Node(_R, 1, "no root: retry", end=True),
    "mark_private": _Node(_M, 2, "mark_private"),
    "reserved?": _Node(_M, 3, "reserved?"),
    "refused": _Node(_R, 3, "refused", end=True),
    _MMIO: _Node(_L, 4, _MMIO),
    _DO: _Node(_M, 5, _DO),
    "is_private": _Node(_M, 6, "is_private"),
    "new_fault": _Node(_M, 7, "new_fault"),
    "page_fault": _Node(_M, 8, "page_fault"),
    "bug": _Node(_R, 8, "a bug in KVM", end=True),
    "after_fault": _Node(_M, 9, "after_fault"),
    "emulate": _Node(_L, 10, "emulate", end=True),
    "resume": _Node(_M, 10, "resume the guest", end=True),
    "user space": _Node(_R, 10, "to user space", end=True),
}
"""The whole path: its steps, and the ends that a fault can come to."""


class _Edge(NamedTuple):
    """A way from one node to another; its label begins at `at`."""

    start: str
    end: str
    points: Sequence[tuple[float, float]]
    label: str = ""
    at: tuple[float, float] = (0, 0)


def _edges() -> Iterator[_Edge]:
    """Every way between two nodes."""
    for a, b in (
        ("sanitize", "root_is_valid"), ("root_is_valid", "mark_private"), ("mark_private", "reserved?"),
        ("is_private", "new_fault"), ("new_fault", "page_fault"), ("page_fault", "after_fault"),
        ("after_fault", "resume"),
    ):  # fmt: skip
        yield _Edge(a, b, [(_NODES[a].x, _NODES[a].low), (_NODES[b].x, _NODES[b].top)])
    for a, b in (("root_is_valid", "no root"), ("reserved?", "refused"), ("page_fault", "bug")):
        yield _Edge(a, b, [(_M[1], _NODES[a].y), (_R[0], _NODES[b].y)])
    reserved, mmio, do, after = (_NODES[a] for a in ("reserved?", _MMIO, _DO, "after_fault"))
    end, halfway = _NODES["resume"].top, _NODES["new_fault"].top
    points = [(do.x, reserved.low), (do.x, do.top)]
    yield _Edge("reserved?", _DO, points, ROUTES[TO_FAULT], (do.x + 0.12, mmio.y))
    points = [(_M[0], reserved.y), (mmio.x, reserved.y), (mmio.x, mmio.top)]
    yield _Edge("reserved?", _MMIO, points, ROUTES[TO_MMIO], (mmio.x + 0.12, reserved.y - 0.2))
    points = [(_L[1], mmio.y), (_M[0] + 0.95, mmio.y), (_M[0] + 0.95, do.top)]
    yield _Edge(_MMIO, _DO, points, "INVALID", (_L[1] + 0.1, mmio.y - 0.2))
    x = mmio.x - 0.9
    yield _Edge(_MMIO, "emulate", [(x, mmio.low), (x, end)], "EMULATE", (x + 0.12, halfway))
    x = mmio.x + 0.65
    points = [(x, mmio.low), (x, after.y), (_M[0], after.y)]
    yield _Edge(_MMIO, "after_fault", points, "RETRY,\n-EINVAL", (x + 0.12, halfway))
    yield _Edge(_DO, "is_private", [(do.x, do.low - 0.08), (do.x, _NODES["is_private"].top)])
    bus = (after.low + end) / 2
    for b, x, side in (("emulate", mmio.x + 0.65, -0.3), ("user space", _NODES["user space"].x, 0.3)):
        yield _Edge("after_fault", b, [(do.x + side, after.low), (do.x + side, bus), (x, bus), (x, end)])


def _end_of(explanation: Explanation) -> str:
    """Which end of `_NODES` a fault came to."""
    outcome = explanation.outcome
    way = next(record.result for record in explanation.steps if record.step == "route")
    if way.to == TO_RETRY:
        return "no root"
    if way.to == REFUSED:
        return "refused"
    if outcome.vm_bugged:
        return "bug"
    if outcome.emulation.called:
        return "emulate"
    return "resume" if outcome.ret > 0 else "user space"


def _can_refuse(revision: Revision) -> bool:
    """Whether any reserved fault is refused: if so, one with every bit set is."""
    to, _ = revision.link("reserved_fault")(U64_MASK)
    return bool(to == REFUSED)


def _taken(explanation: Explanation) -> dict[str, list[str]]:
    """The nodes that a fault went through, in order, each with what is to be said beside it."""
    taken: dict[str, list[str]] = {}
    way = next(record.result for record in explanation.steps if record.step == "route")
    reserved = "set" if way.error_code & PFERR_RSVD_MASK else "clear"
    carried: list[str] = []
    for record in explanation.steps:
        said = [record.why]
        if record.before != record.after:
            said.append(f"{record.before:#x} → {record.after:#x}")
        if record.step == "handler_error_code" and record.before != record.after:
            carried = said
        if record.step == "reserved_fault":
            taken["reserved?"] = said
        if record.step in _NODES and not _NODES[record.step].end:
            taken[record.step] = carried + said
            carried = []
        if record.step == "mark_private":
            taken["reserved?"] = [f"RSVD is {reserved}: {WAYS[way.to]}"]
    end = _end_of(explanation)
    whole = next(r.why for r in explanation.records if r.step == "kvm_mmu_page_fault")
    emulated = explanation.outcome.emulation
    taken[end] = [f"type {emulated.emulation_type:#x}; {whole}" if end == "emulate" else whole]
    return taken


@drawing()
def decision_path(explanation: Explanation, ax: Axes | None = None) -> Figure | Axes:
    """Draw the whole path of kvm_mmu_page_fault(), the way that one fault took lit up, and the reasons beside it.

    The end "refused" is there if a reserved fault can come to it in this revision.
    """
    taken = _taken(explanation)
    refuses = _can_refuse(explanation.revision)
    nodes = {name: node for name, node in _NODES.items() if name != "refused" or refuses}
    steps = set(pairwise(taken))
    width, text = 16.0, 10.4
    paper = Paper(ax, width, _NODES["resume"].low + 0.2)
    first = _NODES["sanitize"]

    title, _, code = explanation.title.partition(", error code ")
    code = code or f"{explanation.records[-1].before:#x}"  # a recorded fault's title does not tell it
    paper.text(0.2, 0.35, title, ha="left", size=20, bold=True, room=width - 0.4, gid="title")
    paper.text(first.x, 1.0, f"error code {code}", gid="code")
    paper.line([(first.x, 1.2), (first.x, first.top)], BLUE, weight=3.5, arrow=True)

    for edge in _edges():
        if edge.end not in nodes:
            continue
        lit = (edge.start, edge.end) in steps
        colour, weight, z, word = _way(lit)
        paper.line(edge.points, colour, weight=weight, arrow=True, gid=f"{word}:{edge.start}>{edge.end}", z=z)
        paper.text(*edge.at, edge.label, INK if lit else PALE, ha="left", bold=lit)

    for name, node in nodes.items():
        lit = name in taken
        fill, ink = (BLUE, PAPER) if lit and node.end else (PAPER, INK if lit else PALE)
        x, w, h = node.column[0], node.column[1] - node.column[0], _HEIGHT
        holds = name == _DO
        if holds:  # the three steps that it calls
            x, w, h = x - 0.14, w + 0.28, _NODES["page_fault"].low - node.top + 0.1
        paper.box(
            x, node.top, w, h, fill, BLUE if lit else SOFT, weight=2.5 if lit else 1.5, round=h / 2 if node.end else 0,
            gid=f"{'lit' if lit else 'pale'}:{name}", z=0.4 if holds else 2,
        )  # fmt: skip
        paper.text(node.x, node.y, node.label, ink, bold=lit, room=w - 0.2, gid=f"label:{name}")

    for _, row in groupby(
        sorted(taken, key=lambda name: _NODES[name].row), key=lambda name: _NODES[name].row
    ):
        names = list(row)
        node = _NODES[names[0]]
        paper.box(0.05, node.top - 0.1, width - 0.1, _HEIGHT + 0.2, WASH, WASH, weight=0, z=0)
        said = [
            (name, line, "→" in reason or reason.startswith("WARN"))
            for name in names
            for reason in taken[name]
            for line in wrap(reason, width - text - 0.1, 2, bold=reason.startswith("WARN"))
        ][:3]
        for i, (name, line, loud) in enumerate(said):
            y, ink = node.y + 0.25 * (i - (len(said) - 1) / 2), RED if loud else INK
            paper.text(text, y, line, ink, bold=loud, ha="left", room=width - text - 0.05, gid=f"why:{name}")
    return paper.result


# ----------------------------------------------------------------------------------------------------
# Guest memory

KINDS: Mapping[str, Ink] = {"private": Ink(GREEN, "xxx"), "shared": Ink(SKY, ""), "mmio": Ink(ORANGE, "///")}
"""What a page of guest memory can be; `mmio`: there is no slot."""

PER_ROW = 6


class _Region(NamedTuple):
    """Pages from `start` up to and without `end`, of one of KINDS."""

    start: int
    end: int
    kind: str
    note: str = ""


def _regions(
    store: AttributeStore, slots: Iterable[Memslot] | None, window: tuple[int, int] | None, gfn: int | None
) -> list[_Region]:
    """Cut guest memory where a slot or an attribute begins or ends."""
    marked = [(start, end) for start, end, word in store if word & KVM_MEMORY_ATTRIBUTE_PRIVATE]
    there = list(slots) if slots is not None else None
    edges = {edge for pair in marked for edge in pair}
    edges |= {edge for slot in there or () for edge in (slot.base_gfn, slot.end_gfn)}
    edges |= {gfn, gfn + 1} if gfn is not None and not (edges and min(edges) <= gfn < max(edges)) else set()
    edges |= set(window or ())
    found: list[_Region] = []
    for start, end in pairwise(sorted(edges)):
        private = store[start] & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
        kind, note = "private" if private else "shared", ""
        if there is not None:
            slot = next((slot for slot in there if slot.base_gfn <= start < slot.end_gfn), None)
            note = f"slot {slot.id}" if slot else "no slot, private" if private else "no slot"
            kind = kind if slot else "mmio"
        if found and (found[-1].kind, found[-1].note) == (kind, note):
            start = found.pop().start
        found.append(_Region(start, end, kind, note))
    return found


def _size(pages: int) -> str:
    """A number of 4K pages in words; a large one that is no whole number of MiB is rounded."""
    for unit, shift in (("TiB", 28), ("GiB", 18), ("MiB", 8)):
        if pages >> shift and pages & (1 << shift) - 1 == 0:
            return f"{pages >> shift} {unit}"
    if pages < 10_000:
        return f"{pages} page{'s' if pages > 1 else ''}"
    return f"≈ {pages >> 8} MiB" if pages >> 20 == 0 else f"≈ {pages >> 18} GiB"


@drawing()
def memory_strip(
    store_or_regions: AttributeStore | Iterable[tuple[int, int, str]], *, slots: Iterable[Memslot] | None = None,
    fault: Fault | int | None = None, window: tuple[int, int] | None = None, ax: Axes | None = None,
) -> Figure | Axes:  # fmt: skip
    """Draw guest memory as a strip of regions, private, shared or MMIO, and where a fault hit it.

    Give regions as (start gfn, end gfn, one of KINDS), the end not included, or an attribute store, with the
    VM's memslots if pages without a slot are to show.  `fault` is a gfn or a filled fault; `window`, two gfns,
    leaves out what is not between them.  Widths are not to scale: a page and a terabyte both can be seen.
    Raises InputError for an unknown kind, an empty picture, and a fault outside of it.
    """
    gfn = fault.gfn if isinstance(fault, Fault) else fault
    if isinstance(store_or_regions, AttributeStore):
        regions = _regions(store_or_regions, slots, window, gfn)
    else:
        regions = []
        for given in store_or_regions:
            try:
                region = _Region(*given)
                region = region._replace(start=index(region.start), end=index(region.end))
                if not 0 <= region.start < region.end:
                    raise ValueError
            except (TypeError, ValueError):
                raise InputError(
                    f"{brief(given)} is no region: (start gfn, end gfn, kind) is wanted"
                ) from None
            regions.append(region)
        regions.sort(key=lambda region: region[:2])
    for region in regions:
        if region.kind not in KINDS:
            raise InputError(f"a region's kind is one of {', '.join(KINDS)}, not {region.kind!r}")
    if window:
        regions = [r._replace(start=max(r.start, window[0]), end=min(r.end, window[1])) for r in regions]
    regions = [r for r in regions if r.start < r.end]
    if not regions:
        raise InputError("there is no region to draw")
    for low, high in pairwise(regions):
        if high.start < low.end:
            raise InputError(f"two regions hold gfn {high.start:#x}; each page is in one")
    if gfn is not None and not any(r.start <= gfn < r.end for r in regions):
        raise InputError(f"the fault's gfn {gfn:#x} lies in none of the regions drawn")

    rows = -(-len(regions) // PER_ROW)
    cuts = [len(regions) * n // rows for n in range(rows + 1)]
    lines = [regions[start:end] for start, end in pairwise(cuts)]
    tops = [0.75 if gfn is not None and any(r.start <= gfn < r.end for r in line) else 0.15 for line in lines]
    width, y = 14.0, 0.0
    paper = Paper(ax, width, sum(tops) + 1.5 * rows + 0.45)
    for line, above in zip(lines, tops, strict=True):
        y += above
        ends = [right.start != left.end for left, right in pairwise(line)] + [True]
        notes = [", ".join(filter(None, (r.note, _size(r.end - r.start)))) for r in line]
        least = [
            max(
                text_width(note) + 0.2,
                text_width(f"{r.start:#x}") + (text_width(f"{r.end:#x}") if end else 0) + 0.35,
            )
            for r, note, end in zip(line, notes, ends, strict=True)
        ]
        log = [(r.end - r.start).bit_length() for r in line]
        room = width - 2 * _LEFT - 0.3 * (sum(ends) - 1)
        squeeze, spare = min(1, room / sum(least)), max(0, room - sum(least))
        x = _LEFT
        for r, note, end, base, share in zip(line, notes, ends, least, log, strict=True):
            w = base * squeeze + spare * share / sum(log)
            paper.box(x, y, w, 1.0, gid=f"region:{r.kind}:{r.start:#x}")
            paper.swatch(x, y + 0.66, w, 0.34, KINDS[r.kind])
            paper.text(x + w / 2, y + 0.2, "MMIO" if r.kind == "mmio" else r.kind, bold=True, room=w - 0.1)
            paper.text(x + w / 2, y + 0.48, note, room=w - 0.1)
            paper.text(x, y + 1.2, f"{r.start:#x}", ha="left", room=base * squeeze)
            if end:
                paper.text(x + w, y + 1.2, f"{r.end:#x}", ha="right", room=base * squeeze / 2)
            if gfn is not None and r.start <= gfn < r.end:
                at = x + min(max(w * (gfn - r.start + 0.5) / (r.end - r.start), 0.15), w - 0.15)
                paper.line([(at, y - 0.32), (at, y + 0.02)], RED, weight=5, arrow=True, z=4, gid="fault")
                text = f"fault at gfn {gfn:#x}"
                if isinstance(fault, Fault):
                    access = "write" if fault.write else "fetch" if fault.exec else "read"
                    text = f"{'private' if fault.is_private else 'shared'} {access} at gfn {gfn:#x}"
                half = text_width(text, bold=True) / 2
                middle = min(max(at, half + _LEFT), width - half - _LEFT)
                paper.text(middle, y - 0.47, text, RED, bold=True, gid="fault")
            x += w + (0.3 if end else 0)
        y += 1.5
    paper.text(_LEFT, y + 0.2, "guest frame numbers (gfn); widths are not to scale", PALE, ha="left")
    return paper.result


# ----------------------------------------------------------------------------------------------------
# MMIO SPTEs

_FIELDS: Mapping[str, Ink] = {
    "gen": Ink(ORANGE, "///"),
    "gfn": Ink(BLUE, ""),
    "value": Ink(GREEN, "xxx"),
    "access": Ink(SKY, "..."),
    "L1TF": Ink(PINK, "\\\\\\"),
}
"""What an MMIO SPTE's bits hold."""

_FIELD_NAMES = {
    "gen": "generation",
    "gfn": "gfn",
    "value": "marks it as MMIO",
    "access": "access rights",
    "L1TF": "always 1; content 5 bits higher",
}


@typed(mmio_cfg=2)
def spte_fields(mmio_cfg: int, revision: str | Revision) -> dict[int, str]:
    """Find out what each bit of an MMIO SPTE holds, by running `revision`'s functions on single bits.

    "gen 7" is bit 7 of the generation, "gfn 0" bit 0 of the gfn; see `_FIELDS`.  `mmio_cfg` is 0 to 3: EPT, EPT
    with L1TF mask, NPT, TDX.
    """
    link = get(revision).link
    mmio = link("mmio_format")(mmio_cfg, True)
    plain = link("make_mmio_spte")(mmio, 0, 0, 0)
    fields = {}
    for n in range(64):
        bit = 1 << n
        gen, gfn = link("get_mmio_spte_generation")(bit), link("get_mmio_spte_gfn")(mmio, bit)
        if gen:
            fields[n] = f"gen {gen.bit_length() - 1}"
        elif gfn:
            fields[n] = f"gfn {gfn.bit_length() - 1}"
        elif not link("is_mmio_spte")(mmio, plain ^ bit):
            fields[n] = "value"
        elif mmio.access_mask & bit:
            fields[n] = "access"
        elif plain & bit:
            fields[n] = "L1TF"
    return fields


@drawing(spte=64, mmio_cfg=2)
def mmio_spte_layout(
    spte: int, mmio_cfg: int = 0, revision: str | Revision = "posted", ax: Axes | None = None
) -> Figure | Axes:
    """Draw the 64 bits of an MMIO SPTE: generation in two parts, gfn, access rights, and what marks it as one.

    `spte` is a u64, `mmio_cfg` is 0 to 3: EPT, EPT with L1TF mask, NPT, TDX.  The fields are those of
    `spte_fields`.  Raises InputError for a value that is no u64 or no configuration.
    """
    revision = get(revision)
    if mmio_cfg not in range(4):
        raise InputError(f"mmio_cfg={mmio_cfg!r}: it is 0 (EPT), 1 (EPT with L1TF mask), 2 (NPT) or 3 (TDX)")
    spte = _u64("spte", spte)
    fields = spte_fields(mmio_cfg, revision)
    cells = [
        _Cell(
            bool(spte >> n & 1),
            fields.get(n, "").replace("value", "MMIO"),
            _FIELDS[fields[n].split()[0]] if n in fields else None,
        )
        for n in range(64)
    ]
    top = 1.15
    paper = Paper(ax, _LANES_WIDTH, top + sum(_lanes_height(cells, 0.82)) + 0.55)
    mmio = revision.link("mmio_format")(mmio_cfg, True)
    gen, gfn = revision.link("get_mmio_spte_generation")(spte), revision.link("get_mmio_spte_gfn")(mmio, spte)
    bits = sum(name.startswith("gen") for name in fields.values())
    says = f"generation {gen:#x} ({bits} bits), gfn {gfn:#x}"
    if mmio.access_mask:
        says += f", access {spte & mmio.access_mask:#x}"
    if not revision.link("is_mmio_spte")(mmio, spte):
        says = "this is no MMIO SPTE"
    paper.text(_LEFT, 0.35, says, ha="left", size=20, bold=True, gid="says")
    paper.text(_LEFT, top - 0.32, f"{spte:#x}", ha="left", size=20, bold=True, mono=True, gid="value")
    beside = _LEFT + 0.3 + text_width(f"{spte:#x}", 20, mono=True, bold=True)
    paper.text(beside, top - 0.32, revision.name, PALE, ha="left")
    end = _lanes(paper, top, cells, 0.82)
    used = {field.split()[0] for field in fields.values()}
    _legend(paper, end + 0.2, {means: _FIELDS[name] for name, means in _FIELD_NAMES.items() if name in used})
    return paper.result


class _Moment(NamedTuple):
    """One look at an MMIO SPTE, or its making: generations as the SPTE can hold them."""

    label: str
    kvm: int
    spte: int | None
    verdict: str  # made, valid, stale or none
    updating: bool


def _moment(number: int, event: Mapping[str, Any] | Sequence[Any], mask: int) -> _Moment:
    values: Sequence[Any]
    if isinstance(event, Mapping):
        when = event.get("step", event.get("time", number))
        made = event.get("gen")
        values = (event.get("kvm_gen", made), event.get("spte_gen", made), event.get("valid"))
    elif isinstance(event, Sequence) and len(event) == 4:
        when, *values = event
    else:
        raise InputError(f"event {number}: {event!r} is not (step, kvm_gen, spte_gen, valid)")
    kvm = _u64(f"event {number}: kvm_gen", values[0])
    spte = None if values[1] is None else _u64(f"event {number}: spte_gen", values[1]) & mask
    verdict = "none" if spte is None else "made" if values[2] is None else "valid" if values[2] else "stale"
    return _Moment(str(when), kvm & mask, spte, verdict, update_in_progress(kvm))


_VERDICTS = {
    "made": ("s", ORANGE, "SPTE made"),
    "valid": ("o", GREEN, "found current: emulate"),
    "stale": ("X", RED, "found stale: full fault"),
}


@drawing()
def mmio_generation(
    events: Iterable[Mapping[str, Any] | Sequence[Any]],
    revision: str | Revision = "posted",
    ax: Axes | None = None,
) -> Figure | Axes:
    """Draw the life of an MMIO SPTE's generation beside that of the memslots.

    `events` are what the tracepoints mark_mmio_spte (`gen`) and check_mmio_spte (`kvm_gen`, `spte_gen`, `valid`)
    tell of one SPTE, in order: mappings, with `step` or `time` as they have it, or tuples (step, kvm_gen,
    spte_gen, valid).  `spte_gen` None: there is no SPTE; `valid` None: it is being made.  Generations are cut to
    what fits into an SPTE of `revision`; bit 63 of `kvm_gen` says that an update is in progress.
    Raises InputError for an event that is none of these.
    """
    mask = get(revision).link("mmio_spte_gen_mask")()
    events = list(events)
    timed = any(isinstance(event, Mapping) and "time" in event and "step" not in event for event in events)
    moments = [_moment(n, event, mask) for n, event in enumerate(events)]
    if not moments:
        raise InputError("there is no event to draw")
    seen = sorted({m.kvm for m in moments} | {m.spte for m in moments if m.spte is not None})
    place = {gen: n for n, gen in enumerate(seen)}
    wraps = [n + 0.5 for n, (left, right) in enumerate(pairwise(moments)) if right.kvm < left.kvm]
    top = len(seen) + (0.6 if wraps or any(m.updating for m in moments) else -0.3)
    result, ax, scale = chart(ax, 14, 2.1 + 0.6 * (top + 0.5), Margins(1.7, 0.3, 1.0))
    edges = [n + 0.5 for n in range(-1, len(moments))]
    for n, m in enumerate(moments):
        if m.spte is not None and m.spte != m.kvm:
            low, high = sorted((place[m.spte], place[m.kvm]))
            gap = Rectangle((n - 0.5, low), 1, high - low, hatch="//", gid=f"gap:{n}")
            gap.set(facecolor=PAPER, edgecolor="#a0a0a0", linewidth=0)
            gap.set_hatch_linewidth(1.2 * scale)
            ax.add_patch(gap)
        if m.updating:
            ax.axvspan(n - 0.5, n + 0.5, facecolor=WASH, zorder=0, gid=f"updating:{n}")
            ax.text(n, top - 0.05, "update in\nprogress", ha="center", va="top", **font_of(scale, PALE))
    slots = [place[m.kvm] for m in moments]
    ax.stairs(slots, edges, baseline=None, color=INK, lw=3.5 * scale, label="memslots' generation", zorder=2)
    held = [nan if m.spte is None else place[m.spte] for m in moments]
    ax.stairs(
        held, edges, baseline=None, color=BLUE, lw=3 * scale, linestyle=(0, (3, 1.2)),
        label="generation in the SPTE", zorder=3,
    )  # fmt: skip
    for verdict, (marker, colour, label) in _VERDICTS.items():
        at = [n for n, m in enumerate(moments) if m.verdict == verdict]
        if at:
            ax.plot(
                at, [held[n] for n in at], marker, color=colour, markersize=15 * scale, markeredgecolor=INK,
                markeredgewidth=1.2 * scale, label=label, zorder=4, gid=verdict,
            )  # fmt: skip
    for x in wraps:
        ax.axvline(x, color=INK, linewidth=1.5 * scale, linestyle=":", gid="wrap")
        ax.text(x + 0.06, top - 0.05, "begins\nanew", ha="left", va="top", **font_of(scale, PALE))
    step = -(-len(seen) // 12)
    ax.set_yticks(range(0, len(seen), step), [f"{gen:#x}" for gen in seen[::step]])
    room = 12.0 / len(moments)
    skip = max(1, -int(-max(text_width(m.label) + 0.15 for m in moments) // room))
    ax.set_xticks(range(0, len(moments), skip), [m.label for m in moments[::skip]])
    ax.set(xlim=(-0.5, len(moments) - 0.5), ylim=(-0.5, top))
    events_axis = "events in order; their times in seconds" if timed else "events in order"
    axis_labels(ax, scale, events_axis, f"generation, {mask.bit_length()} bits")
    inner_key(ax, scale, ax.get_legend_handles_labels()[0], 3)
    return result


# ----------------------------------------------------------------------------------------------------
# Tables


def _column(frame: pd.DataFrame, name: str) -> Any:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"{brief(frame)} is no table (DataFrame)")
    if name not in frame:
        raise InputError(f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    return frame[name]


def _codes(frame: pd.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A column of u64 codes, numbers or text; what is missing is left out."""
    values = _column(frame, column).dropna()
    if values.dtype.kind == "u":
        return np.asarray(values.to_numpy(dtype=np.uint64))
    codes = []
    for row, value in values.items():
        code = parse(value, Input(column, "u64", 0, ""), {})
        if code is None or not 0 <= code <= U64_MASK:
            raise InputError(f"column {column!r}, row {row}: {value!r} is no unsigned 64-bit number")
        codes.append(code)
    return np.array(codes, dtype=np.uint64)


@drawing()
def bit_counts(frame: pd.DataFrame, column: str = "error_code", ax: Axes | None = None) -> Figure | Axes:
    """Draw how often each bit is set in a column of error codes (u64, as numbers or as text).

    Bits that have a name are drawn in any case, the others if they occur.
    Raises InputError naming column and row of what is no code.
    """
    codes = _codes(frame, column)
    counts = [int((codes >> np.uint64(n) & np.uint64(1)).sum()) for n in range(64)]
    known = {row.bit: row for row in PFERR}
    rows = [known.get(n, Bit(n, "", NOBODY, "", "", "")) for n in range(64) if n in known or counts[n]]
    most = max(1, *counts)
    result, ax, scale = chart(ax, 14, 1.9 + 0.42 * len(rows), Margins(3.2, 0.4, 0.6))
    for y, row in enumerate(rows):
        ink, count = ORIGINS[row.set_by], counts[row.bit]
        bar = Rectangle((0, y - 0.36), count, 0.72, gid=f"bar:{row.bit}")
        ax.add_patch(filled_with(bar, ink, scale))
        text_beside(ax, scale, count, y, f"{count:,}", gid=f"count:{row.bit}", pale=not count)
    ax.set(xlim=(0, most * 1.12), ylim=(len(rows) - 0.4, -0.6))
    ax.set_yticks(range(len(rows)), [f"{row.name or 'no name'}  {row.bit:>2}" for row in rows])
    ax.tick_params(axis="y", length=0)
    ticks = [int(tick) for tick in MaxNLocator(5, integer=True).tick_values(0, most) if tick <= most]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis_labels(ax, scale, f"rows of {column} with the bit set, of {len(codes):,}")
    origins = [origin for origin in Origin if any(row.set_by is origin for row in rows)]
    samples = [filled_with(Patch(label=origin.value), ORIGINS[origin], scale) for origin in origins]
    inner_key(ax, scale, [Patch(facecolor="none", label="set by"), *samples], len(origins) + 1)
    return result
