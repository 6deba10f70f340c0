# SPDX-License-Identifier: GPL-2.0-only
"""Pictures of faults: drawn from the tables, records and functions that everything else uses.

Every function takes `ax`.  Given one, it draws there, to that size, and returns it; without, it makes a Figure
of its own and returns that.  What matters is told twice, by colour and by hatch, weight or word.  No setting of
matplotlib is read or changed, and pyplot is not used, so that a callback may draw beside a running cell.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, groupby, product
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from kvm_pf.bits import AMD, CPU, EPT, INTEL, KVM, NOBODY, PFERR, PFERR_RSVD_MASK, U64_MASK, Bit, Origin
from kvm_pf.entry import REFUSED, ROUTES, TO_RETRY
from kvm_pf.errors import InputError
from kvm_pf.revisions import Revision, get
from kvm_pf.watch import Explanation, Record

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "Picture", "bit_changes", "bit_counts", "bit_layout", "decision_path", "ept_wiring", "memory_strip",
    "mmio_generation", "mmio_spte_layout", "outcomes", "png",
)  # fmt: skip

# ----------------------------------------------------------------------------------------------------
# The look

INK, PAPER, PALE, SOFT = "#1a1a1a", "#ffffff", "#767676", "#d0d0d0"
WASH = "#f2f2f2"
BLUE, SKY, GREEN, ORANGE, RED, PINK = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"
"""Fonts that come with matplotlib."""

SIZE = 16
"""Points; half of it can still be read."""


class Ink(NamedTuple):
    """A colour, and the hatch that says the same without it."""

    colour: str
    hatch: str


ORIGINS: Mapping[Origin, Ink] = {
    CPU: Ink(BLUE, ""),
    AMD: Ink(ORANGE, "///"),
    INTEL: Ink(SKY, "..."),
    KVM: Ink(GREEN, "xxx"),
    NOBODY: Ink(SOFT, ""),
}


class Picture(Figure):
    """A Figure that a notebook shows by itself, each time with the same bytes."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(picture: Figure | Axes, dpi: float | None = None) -> bytes:
    """Return a picture, or the figure that Axes are in, as a PNG file: always the same bytes for the same picture."""
    figure = picture.get_figure(root=True) if isinstance(picture, Axes) else picture
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi or figure.dpi, metadata={"Software": None}, facecolor=PAPER)
    return file.getvalue()


@cache
def _advance(char: str, bold: bool, mono: bool) -> float:
    """The width of a character of one point, in points."""
    font = FontProperties(family=MONO if mono else SANS, weight="bold" if bold else "normal")
    with_it, without = (TextPath((0, 0), s, size=100, prop=font).get_extents().width for s in (f"|{char}|", "||"))
    return float(with_it - without) / 100


@cache
def _digits(number: int, size: float) -> TextPath:
    return TextPath((0, 0), str(number), size=size, prop=FontProperties(family=SANS))


def _width(text: str, size: float = SIZE, bold: bool = False, mono: bool = False) -> float:
    """The width of a text in inches."""
    return sum(_advance(char, bold, mono) for char in text) * size / 72


def _wrap(text: str, width: float, lines: int, at: str = " |", size: float = SIZE, bold: bool = False) -> list[str]:
    """Break a text after any of the characters `at`; what does not fit into so many lines ends in "…"."""
    rows = [""]
    for word in re.findall(f"[^{at}]+[{at}]?|[{at}]", text):
        if rows[-1] and _width((rows[-1] + word).rstrip(), size, bold) > width:
            rows.append("")
        rows[-1] += word
    rows = [row.rstrip() for row in rows]
    if len(rows) > lines:
        last = rows[lines - 1] + " "
        while _width(last + "…", size, bold) > width:
            last = last[:-1]
        rows = [*rows[: lines - 1], last.rstrip(" ,;:") + "…"]
    return rows


class _Paper:
    """A sheet measured in inches from its top left corner, text in points; it shrinks to the Axes it is given."""

    def __init__(self, ax: Axes | None, width: float, height: float) -> None:
        if ax is None:
            self.result: Figure | Axes = Picture(figsize=(width, height))
            self.ax = self.result.add_axes((0, 0, 1, 1))
        else:
            self.result = self.ax = ax
        self.ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self.ax.set_axis_off()
        room = self.ax.get_window_extent()
        dpi = self.ax.figure.dpi
        self.scale = min(room.width / dpi / width, room.height / dpi / height)

    def text(
        self, x: float, y: float, text: str, colour: str = INK, *, size: float = SIZE, room: float = 0,
        bold: bool = False, mono: bool = False, ha: str = "center", va: str = "center_baseline", gid: str = "",
    ) -> None:  # fmt: skip
        """Write; smaller if the text would be wider than `room`."""
        if room:
            size *= min(1, room / max(_width(line, size, bold, mono) for line in text.split("\n")))
        self.ax.text(
            x, y, text, color=colour, fontsize=size * self.scale, family=MONO if mono else SANS,
            weight="bold" if bold else "normal", ha=ha, va=va, linespacing=1.15, gid=gid or None,
        )  # fmt: skip

    def numbers(self, numbers: Iterable[tuple[float, float, int]], colour: str, size: float = 14) -> None:
        """Write many numbers (left end, middle, value) as one shape: a text of its own for each takes far longer."""
        shapes = [
            Path(shape.vertices * (1 / 72, -1 / 72) + (x, y + 0.36 * size / 72), shape.codes)  # type: ignore[operator]
            for x, y, number in numbers
            for shape in [_digits(number, size)]
        ]
        if shapes:
            shape = Path.make_compound_path(*shapes)
            self.ax.add_artist(PathPatch(shape, facecolor=colour, linewidth=0, zorder=3))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = PAPER, edge: str = INK, *,
        weight: float = 1, hatch: str = "", round: float = 0, dashed: bool = False, gid: str = "", z: float = 1,
    ) -> None:  # fmt: skip
        """Draw a rectangle; `weight` is that of its edge in points, `round` the radius of its corners."""
        look = {
            "facecolor": fill, "edgecolor": edge, "linewidth": weight * self.scale, "zorder": z, "gid": gid or None,
            "linestyle": "--" if dashed else "-",
        }  # fmt: skip
        patch: Rectangle | FancyBboxPatch
        if round:
            style = f"round,pad=0,rounding_size={round}"
            patch = FancyBboxPatch((x, y), width, height, boxstyle=style, **look)  # type: ignore[arg-type]
        else:
            patch = Rectangle((x, y), width, height, **look)  # type: ignore[arg-type]
        if hatch:
            patch.set_hatch(hatch)
            patch.set_hatch_linewidth(0.9 * self.scale)
        self.ax.add_artist(patch)

    def swatch(self, x: float, y: float, width: float, height: float, ink: Ink) -> None:
        """Fill a rectangle with a colour and its hatch."""
        self.box(x, y, width, height, ink.colour, INK, weight=0.6, hatch=ink.hatch)

    def ring(self, x: float, y: float, radius: float, colour: str) -> None:
        """Draw a small open circle."""
        self.ax.add_artist(Circle((x, y), radius, facecolor=PAPER, edgecolor=colour, linewidth=2 * self.scale, zorder=2))

    def line(
        self, points: Sequence[tuple[float, float]], colour: str = INK, *, weight: float = 1, arrow: bool = False,
        dashed: bool = False, curve: bool = False, gid: str = "", z: float = 0.5,
    ) -> None:  # fmt: skip
        """Draw a line through points, or (`curve`) an S between two; `arrow` puts a head at its end."""
        if curve:
            (x0, y0), (x1, y1) = points
            middle = (x0 + x1) / 2
            path = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [1, 4, 4, 4])
        else:
            path = Path(list(points))
        look = {"linewidth": weight * self.scale, "zorder": z, "capstyle": "butt", "joinstyle": "miter"}
        style = "--" if dashed else "-"
        self.ax.add_artist(PathPatch(path, fill=False, edgecolor=colour, linestyle=style, gid=gid or None, **look))  # type: ignore[arg-type]
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            size = 0.12 + 0.025 * weight
            dx, dy = (x1 - x0) / length * size, (y1 - y0) / length * size
            head = [(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2), (x1, y1)]
            self.ax.add_artist(PathPatch(Path(head), facecolor=colour, edgecolor=colour, linewidth=0, zorder=z))


def _u64(what: str, value: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= U64_MASK:
        raise InputError(f"{what}={value!r}: it takes an unsigned 64-bit number")
    return value


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


def _lanes(paper: _Paper, y: float, cells: Sequence[_Cell], tall: float) -> float:
    """Draw 64 cells, most significant first, eight to a lane, with the byte's digits beside it; return the end."""
    paper.text(_LEFT + 8 * _CELL + 0.75, y - 0.2, "hex", PALE)
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
                beside = (column == 0 or not row[column - 1][1].mark) and column + length < 8
                free = beside and not row[column + length][1].mark
                room = (length + (1 if free else 0)) * _CELL - 0.1
                x = _LEFT + (column + length / 2) * _CELL
                paper.text(x, y + box + 0.18, f"{mark} {step}".rstrip(), RED, bold=True, room=room, gid=f"step:{step}")
            column += length
        byte = sum(c.on << n - 8 * lane for n, c in row)
        paper.text(
            _LEFT + 8 * _CELL + 0.75, y + box / 2, f"{byte:02x}", INK if byte else PALE, size=18, bold=byte != 0, mono=True
        )
        y += height
    for ink, places in numbers.items():
        paper.numbers(places, ink)
    return y


def _cell(paper: _Paper, x: float, y: float, height: float, n: int, cell: _Cell) -> None:
    """Draw one bit: black if it is 1, its name, a strip for its kind, and a frame if it changed."""
    fill, ink = (INK, PAPER) if cell.on else (PAPER, INK)
    edge = PAPER if cell.on else INK if cell.name else SOFT
    paper.box(x, y, _CELL, height, fill, edge, z=2 if cell.name or cell.on else 1, gid=f"bit:{n}:{int(cell.on)}")
    if cell.on:
        paper.text(x + _CELL - 0.1, y + 0.19, "1", PAPER, bold=True, ha="right")
    strip = 0.16 if cell.ink else 0
    if cell.ink:
        paper.ax.add_artist(Rectangle((x, y + height - strip), _CELL, strip, facecolor=PAPER, zorder=2))
        paper.box(x, y + height - strip, _CELL, strip, cell.ink.colour, INK, hatch=cell.ink.hatch, weight=1, z=2.1)
    if cell.name:
        lines = _wrap(cell.name, _CELL - 0.16, 3, "_ ", bold=cell.on)
        middle = y + 0.3 + (height - strip - 0.3) / 2
        paper.text(
            x + _CELL / 2, middle, "\n".join(lines), ink, room=_CELL - 0.16, bold=cell.on, va="center", gid=f"name:{n}"
        )
    if cell.mark:
        paper.box(x, y, _CELL, height, "none", RED, weight=4, dashed="▲" not in cell.mark, z=3, gid=f"changed:{n}")


def _legend(paper: _Paper, y: float, inks: Mapping[str, Ink], notes: Iterable[str] = (), x: float = _LEFT) -> None:
    """Draw a row of samples with their names, then notes."""
    for name, ink in inks.items():
        paper.swatch(x, y - 0.12, 0.5, 0.24, ink)
        paper.text(x + 0.6, y, name, ha="left", gid="legend")
        x += 0.6 + _width(name) + 0.4
    for note in notes:
        paper.text(x, y, note, ha="left", gid="legend")
        x += _width(note) + 0.4


def bit_layout(
    code: int, *, before: int | None = None, table: Sequence[Bit] = PFERR, steps: Mapping[int, str] | None = None,
    title: str = "", ax: Axes | None = None,
) -> Figure | Axes:  # fmt: skip
    """Draw the 64 bits of a code: what each is called, who sets it, and which are set.

    `code` and `before` are u64; with `before`, the bits that changed on the way from it to `code` are framed and
    marked, and `steps` (see `bit_changes`) says by which step.  `table` gives names and origins.
    Raises InputError for a code that is no u64.
    """
    _u64("code", code)
    changed = 0 if before is None else _u64("before", before) ^ code
    steps = {} if steps is None or before is None else steps
    known = {row.bit: row for row in table}
    cells = []
    for n in range(64):
        row, on = known.get(n), bool(code >> n & 1)
        mark = ("▲" if on else "▼") if changed >> n & 1 else ("▼▲" if on else "▲▼") if n in steps else ""
        name = row.name if row and row.name else "no name" if row or on else ""
        cells.append(_Cell(on, name, ORIGINS[row.set_by] if row else None, mark, steps.get(n, "")))
    longest = max(len(_wrap(cell.name, _CELL - 0.16, 3, "_ ")) for cell in cells)
    tall = 0.56 + 0.26 * max(2, longest)
    top = 1.15 if title else 0.7
    height = top + sum(_lanes_height(cells, tall)) + 0.55
    paper = _Paper(ax, _LANES_WIDTH, height)
    if title:
        paper.text(_LEFT, 0.35, title, ha="left", size=20, bold=True, room=_LANES_WIDTH - 2 * _LEFT, gid="title")
    shown = f"{code:#x}" if before is None else f"{before:#x} → {code:#x}"
    paper.text(_LEFT, top - 0.32, shown, ha="left", size=20, bold=True, mono=True, gid="value")
    end = _lanes(paper, top, cells, tall)
    origins = {origin.value: ORIGINS[origin] for origin in Origin if any(row.set_by is origin for row in table)}
    notes = ["▲ set, ▼ cleared on the way"] if any(cell.mark for cell in cells) else []
    paper.text(_LEFT, end + 0.2, "set by", PALE, ha="left")
    _legend(paper, end + 0.2, origins, notes, _LEFT + 0.95)
    return paper.result


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


# ----------------------------------------------------------------------------------------------------
# The EPT qualification wired to the error code

_MBEC, _PRIVATE = 64, 65
_SWITCHES = {_MBEC: "MBEC", _PRIVATE: "private GPA"}
"""What the translation looks at besides the qualification's 64 bits."""

Term = Mapping[int, int]
"""Inputs with the values (0 or 1) that they must have together."""


def _translate(revision: Revision, inputs: int) -> int:
    function = revision.link("ept_error_code")
    return int(function(inputs & U64_MASK, inputs >> _MBEC & 1 != 0, inputs >> _PRIVATE & 1 != 0))


@cache
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
    """The shortest conditions on `inputs` that set `output`: every cube of its truth table that is no larger one's."""
    points = {
        point
        for point in product((0, 1), repeat=len(inputs))
        if _translate(revision, sum(1 << n for n, on in zip(inputs, point, strict=True) if on)) >> output & 1
    }
    found: list[dict[int, int]] = []
    for size in range(len(inputs) + 1):
        for chosen in combinations(range(len(inputs)), size):
            for values in product((1, 0), repeat=size):
                need = dict(zip(chosen, values, strict=True))
                inside = [p for p in product((0, 1), repeat=len(inputs)) if all(p[i] == v for i, v in need.items())]
                term = {inputs[i]: v for i, v in need.items()}
                if points.issuperset(inside) and not any(other.items() <= term.items() for other in found):
                    found.append(term)
    return found  # type: ignore[return-value]


def _term_text(terms: Sequence[Term]) -> str:
    """Say in words what sets a bit."""

    def joined(term: Term) -> str:
        text = " and ".join(("" if on else "not ") + _SWITCHES.get(n, str(n)) for n, on in term.items())
        return f"({text})" if len(term) > 1 and len(terms) > 1 else text

    bits = sum(n < 64 for term in terms for n in term)
    text = f"bit{'s' if bits > 1 else ''} " * (bits > 0) + " or ".join(joined(term) for term in terms)
    return f"unless {text.replace('not ', '')}" if len(terms) == 1 and not any(terms[0].values()) else f"if {text}"


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
    _u64("qualification", qualification)
    private = revision.link("vt_is_tdx_private_gpa")(_u64("direct_bits", direct_bits), _u64("gpa", gpa))
    given = qualification | mbec << _MBEC | private << _PRIVATE
    code = _translate(revision, given)
    terms = ept_terms(revision)
    used = {n for each in terms.values() for term in each for n in term}

    left = [(row.bit, row.label) for row in EPT]
    left += [(n, f"bit {n}") for n in range(64) if n not in dict(left) and (n in used or qualification >> n & 1)]
    left += [(n, name) for n, name in _SWITCHES.items() if n in used]
    right = [(row.bit, row.name or "no name") for row in PFERR]
    right += [(n, f"bit {n}") for n in terms if n not in dict(right)]
    pitch, top = 0.5, 1.25
    rows = max(len(left), len(right))
    paper = _Paper(ax, 14, top + rows * pitch + 0.55)
    x0, x1, x2, x3 = 0.2, 4.1, 7.3, 10.1
    paper.text(x0, 0.35, "exit qualification", PALE, ha="left")
    paper.text(x0, 0.78, f"{qualification:#x}", ha="left", size=20, bold=True, mono=True, gid="value")
    paper.text(x2, 0.35, f"error code, {revision.name}", PALE, ha="left")
    paper.text(x2, 0.78, f"{code:#x}", ha="left", size=20, bold=True, mono=True, gid="value")

    def column(entries: list[tuple[int, str]], x: float, width: float, value: int, live: Iterable[int]) -> dict[int, float]:
        places = {}
        for i, (n, name) in enumerate(entries):
            y = top + i * pitch
            on = bool(value >> n & 1)
            ink = PAPER if on else INK if n in live else PALE
            dark = INK if n in live else PALE
            paper.box(x, y, width, pitch - 0.08, dark if on else PAPER, dark if on or n in live else SOFT, gid=f"{'on' if on else 'off'}:{n}")
            middle = y + (pitch - 0.08) / 2
            if n < 64:
                paper.text(x + 0.45, middle, str(n), ink, ha="right", bold=on)
            paper.text(x + 0.6, middle, name, ink, ha="left", bold=on, room=width - 0.7)
            places[n] = middle
        return places

    starts = column(left, x0, x1 - x0, given, used)
    ends = column(right, x2, x3 - x2, code, terms)
    for output, each in terms.items():
        for term in each:
            live = all(given >> n & 1 == value for n, value in term.items())
            for n, value in term.items():
                look: dict[str, Any] = {"colour": BLUE, "weight": 3.5, "z": 0.8} if live else {"colour": SOFT, "weight": 1.5}
                paper.line(
                    [(x1, starts[n]), (x2 - (0 if value else 0.16), ends[output])],
                    curve=True, dashed=not value, gid=f"{'live' if live else 'idle'}:{n}>{output}", **look,
                )  # fmt: skip
                if not value:
                    paper.ring(x2 - 0.08, ends[output], 0.08, look["colour"])
        live = code >> output & 1 != 0
        paper.text(x3 + 0.15, ends[output], _term_text(each), INK if live else PALE, ha="left", room=13.85 - x3 - 0.15, gid=f"if:{output}")
    note = "black: 1 · grey: 1, but not looked at" if given & ~sum(1 << n for n in used) else "black: 1"
    note += " · thick: what made it so"
    if any(not value for each in terms.values() for term in each for value in term.values()):
        note += " · dashed, with a ring: set by the bit being 0"
    paper.text(x0, top + rows * pitch + 0.25, note, PALE, ha="left")
    return paper.result


# ----------------------------------------------------------------------------------------------------
# One fault's path in the whole path

_L, _M, _R = (0.2, 3.45), (4.15, 3.45), (8.0, 2.15)
"""Columns: left edge and width."""

_NODES: Mapping[str, tuple[tuple[float, float], int, str]] = {
    "sanitize": (_M, 0, "sanitize"),
    "root_is_valid": (_M, 1, "root_is_valid"),
    "no root": (_R, 1, "no root: retry"),
    "mark_private": (_M, 2, "mark_private"),
    "reserved?": (_M, 3, "reserved?"),
    "refused": (_R, 3, "refused"),
    "handle_mmio_page_fault": (_L, 4, "handle_mmio_page_fault"),
    "kvm_mmu_do_page_fault": (_M, 5, "kvm_mmu_do_page_fault"),
    "is_private": (_M, 6, "is_private"),
    "new_fault": (_M, 7, "new_fault"),
    "page_fault": (_M, 8, "page_fault"),
    "bug": (_R, 8, "a bug in KVM"),
    "after_fault": (_M, 9, "after_fault"),
    "emulate": (_L, 10, "emulate"),
    "resume": (_M, 10, "resume the guest"),
    "user space": (_R, 10, "to user space"),
}
"""The whole path: each step's column, row and label."""

_ENDS = ("no root", "refused", "bug", "emulate", "resume", "user space")
_INSIDE = ("is_private", "new_fault", "page_fault")


def _end_of(explanation: Explanation) -> str:
    """Which of `_ENDS` a fault came to."""
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
        if record.step == "passed_on" and record.before != record.after:
            carried = said
        if record.step == "reserved_fault":
            taken["reserved?"] = said
        if record.step in _NODES and record.step not in _ENDS:
            taken[record.step] = carried + said
            carried = []
        if record.step == "mark_private":
            taken["reserved?"] = [f"RSVD is {reserved}: the way is {ROUTES[way.to]}"]
    end = _end_of(explanation)
    whole = explanation.records[0].why
    emulated = explanation.outcome.emulation
    taken[end] = [f"type {emulated.emulation_type:#x}; {whole}" if end == "emulate" else whole]
    return taken


def decision_path(explanation: Explanation, ax: Axes | None = None) -> Figure | Axes:
    """Draw the whole path of kvm_mmu_page_fault(), with the way that one fault took lit up and the reasons beside it."""
    taken = _taken(explanation)
    order = list(taken)
    steps = set(zip(order, order[1:], strict=False))
    pitch, height, top, width = 0.86, 0.56, 1.6, 16.0
    paper = _Paper(ax, width, top + 11 * pitch + 0.1)

    def row(n: float) -> float:
        return top + n * pitch

    def middle(node: str) -> tuple[float, float]:
        (x, w), n, _ = _NODES[node]
        return x + w / 2, row(n) + height / 2

    title, _, code = explanation.title.partition(", error code ")
    paper.text(0.2, 0.35, title, ha="left", size=20, bold=True, room=width - 0.4, gid="title")
    paper.text(middle("sanitize")[0], 1.0, f"error code {code}", gid="code")

    for n in range(11):
        nodes = [node for node in taken if _NODES[node][1] == n]
        if nodes:
            paper.box(0.05, row(n) - 0.1, width - 0.1, height + 0.2, WASH, WASH, weight=0, z=0)
        said = [
            (node, line, "→" in text or text.startswith("WARN"))
            for node in nodes
            for text in taken[node]
            for line in _wrap(text, width - 10.5, 2)
        ][:3]
        for i, (node, line, loud) in enumerate(said):
            y = row(n) + height / 2 + 0.25 * (i - (len(said) - 1) / 2)
            paper.text(10.4, y, line, RED if loud else INK, bold=loud, ha="left", room=width - 10.45, gid=f"why:{node}")

    def edge(a: str, b: str, points: Sequence[tuple[float, float]], label: str = "", at: tuple[float, float] = (0, 0)) -> None:
        lit = (a, b) in steps
        look: dict[str, Any] = {"colour": BLUE, "weight": 3.5, "z": 0.9} if lit else {"colour": SOFT, "weight": 1.5}
        paper.line(points, arrow=True, gid=f"{'lit' if lit else 'pale'}:{a}>{b}", **look)
        if label:
            paper.text(*at, label, INK if lit else PALE, ha="left", bold=lit)

    def down(a: str, b: str) -> None:
        x, y = middle(a)
        edge(a, b, [(x, y + height / 2), (x, middle(b)[1] - height / 2)])

    spine, left, right = middle("sanitize")[0], middle("emulate")[0], middle("bug")[0]
    paper.line([(spine, 1.2), (spine, row(0))], BLUE, weight=3.5, arrow=True)
    for a, b in (("sanitize", "root_is_valid"), ("root_is_valid", "mark_private"), ("mark_private", "reserved?")):
        down(a, b)
    y = middle("reserved?")[1]
    edge("reserved?", "kvm_mmu_do_page_fault", [(spine, y), (spine, row(5))], ROUTES[2], (spine + 0.12, row(4) + 0.3))
    edge("reserved?", "handle_mmio_page_fault", [(_M[0], y), (left, y), (left, row(4))], ROUTES[1], (left + 0.12, y - 0.2))
    for a, b in (("root_is_valid", "no root"), ("reserved?", "refused"), ("page_fault", "bug")):
        edge(a, b, [(_M[0] + _M[1], middle(a)[1]), (_R[0], middle(a)[1])])
    y = middle("handle_mmio_page_fault")[1]
    entry = _M[0] + 0.95
    edge("handle_mmio_page_fault", "kvm_mmu_do_page_fault", [(_L[0] + _L[1], y), (entry, y), (entry, row(5))], "INVALID", (_L[0] + _L[1] + 0.1, y - 0.2))
    y, low = row(4) + height, row(7)
    edge("handle_mmio_page_fault", "emulate", [(left - 0.9, y), (left - 0.9, row(10))], "EMULATE", (left - 0.78, low))
    edge("handle_mmio_page_fault", "after_fault", [(left + 0.65, y), (left + 0.65, middle("after_fault")[1]), (_M[0], middle("after_fault")[1])], "RETRY,\n-EINVAL", (left + 0.77, low))
    edge("kvm_mmu_do_page_fault", "is_private", [(spine, row(5) + height - 0.08), (spine, row(6))])
    for a, b in (("is_private", "new_fault"), ("new_fault", "page_fault"), ("page_fault", "after_fault"), ("after_fault", "resume")):
        down(a, b)
    y = row(9) + height
    bus = y + (pitch - height) / 2
    edge("after_fault", "emulate", [(spine - 0.3, y), (spine - 0.3, bus), (left + 0.65, bus), (left + 0.65, row(10))])
    edge("after_fault", "user space", [(spine + 0.3, y), (spine + 0.3, bus), (right, bus), (right, row(10))])

    for node, ((x, w), n, label) in _NODES.items():
        on, end = node in taken, node in _ENDS
        fill, ink = (BLUE, PAPER) if on and end else (PAPER, INK if on else PALE)
        tall = height
        if node == "kvm_mmu_do_page_fault":  # it holds the three after it
            x, w, tall = x - 0.14, w + 0.28, 3 * pitch + height + 0.1
        paper.box(x, row(n), w, tall, fill, BLUE if on else SOFT, weight=2.5 if on else 1.5, round=height / 2 if end else 0, gid=f"{'lit' if on else 'pale'}:{node}", z=0.4 if tall > height else 2)
        paper.text(x + w / 2, row(n) + height / 2, label, ink, bold=on, room=w - 0.2, gid=f"label:{node}")
    return paper.result
