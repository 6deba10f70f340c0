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
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
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
        self.ax.add_patch(patch)

    def swatch(self, x: float, y: float, width: float, height: float, ink: Ink) -> None:
        """Fill a rectangle with a colour and its hatch."""
        self.box(x, y, width, height, ink.colour, INK, weight=0.6, hatch=ink.hatch)

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
        self.ax.add_patch(PathPatch(path, fill=False, edgecolor=colour, linestyle=style, gid=gid or None, **look))  # type: ignore[arg-type]
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            dx, dy = (x1 - x0) / length * 0.15, (y1 - y0) / length * 0.15
            head = [(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2), (x1, y1)]
            self.ax.add_patch(PathPatch(Path(head), facecolor=colour, edgecolor=colour, linewidth=0, zorder=z))


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
    for lane, height in zip(range(7, -1, -1), _lanes_height(cells, tall), strict=True):
        row = [(n, cells[n]) for n in range(8 * lane + 7, 8 * lane - 1, -1)]
        changed = any(c.mark for _, c in row)
        box = height - (0.36 if changed else 0.1)
        for column, (n, cell) in enumerate(row):
            _cell(paper, _LEFT + column * _CELL, y, box, n, cell)
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
    return y


def _cell(paper: _Paper, x: float, y: float, height: float, n: int, cell: _Cell) -> None:
    """Draw one bit: black if it is 1, its name, a strip for its kind, and a frame if it changed."""
    fill, ink = (INK, PAPER) if cell.on else (PAPER, INK if cell.name else PALE)
    edge = PAPER if cell.on else INK if cell.name else SOFT
    paper.box(x, y, _CELL, height, fill, edge, z=2 if cell.name or cell.on else 1, gid=f"bit:{n}:{int(cell.on)}")
    low = height < 0.5
    paper.text(x + 0.1, y + (height / 2 if low else 0.19), str(n), ink, size=14, ha="left")
    if cell.on:
        paper.text(x + _CELL - 0.1, y + 0.19, "1", PAPER, bold=True, ha="right")
    strip = 0.16 if cell.ink else 0
    if cell.ink:
        paper.ax.add_patch(Rectangle((x, y + height - strip), _CELL, strip, facecolor=PAPER, zorder=2))
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
