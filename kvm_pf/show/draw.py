# SPDX-License-Identifier: GPL-2.0-only
"""The drawing kit of the pictures: inks, paper, charts, and how a picture becomes a PNG."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.show.inks import INK, PALE, PAPER, Ink

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:
    pass


# ----------------------------------------------------------------------------------------------------
# The look

SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"
"""Fonts that come with matplotlib."""

SIZE = 16
"""Points; half of it can still be read."""


class Picture(Figure):
    """A Figure that a notebook shows by itself, each time with the same bytes."""

    def _repr_png_(self) -> bytes:
        return png(self)


def drawing(**bits: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Check a picture's arguments (kvm_pf.common.typed), and draw every text as it is: a $ begins no formula."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
            import matplotlib as mpl

            with mpl.rc_context({"text.parse_math": False}):
                return checked(*args, **kwargs)

        checked = typed(**bits)(function)
        return drawn

    return decorate


@typed()
def png(picture: Figure | Axes, dpi: float | int | None = None) -> bytes:
    """Return a picture, or the figure that Axes are in, as a PNG file: always the same bytes for the same picture."""
    if dpi is not None and not 10 <= dpi <= 1200:
        raise InputError(f"png: dpi={dpi}: 10 to 1200 dots to an inch are wanted")
    figure = picture.get_figure(root=True) if isinstance(picture, Axes) else picture
    if not isinstance(figure, Figure):
        raise InputError("png: these axes have been taken out of their figure")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi or figure.dpi, metadata={"Software": None}, facecolor=PAPER)
    return file.getvalue()


@cache
def advance_of(char: str, bold: bool, mono: bool) -> float:
    """The width of a character of one point, in points."""
    font = FontProperties(family=MONO if mono else SANS, weight="bold" if bold else "normal")
    with_it, without = (
        TextPath((0, 0), s, size=100, prop=font).get_extents().width for s in (f"|{char}|", "||")
    )
    return float(with_it - without) / 100


@cache
def digit_path(number: int, size: float) -> TextPath:
    """The outline of a number."""
    return TextPath((0, 0), str(number), size=size, prop=FontProperties(family=SANS))


def text_width(text: str, size: float = SIZE, bold: bool = False, mono: bool = False) -> float:
    """The width of a text in inches."""
    return sum(advance_of(char, bold, mono) for char in text) * size / 72


def wrap(
    text: str, width: float, lines: int, at: str = " |", size: float = SIZE, bold: bool = False
) -> list[str]:
    """Break a text after any of the characters `at`; what does not fit into so many lines ends in "…"."""
    rows = [""]
    for word in re.findall(f"[^{at}]+[{at}]?|[{at}]", text):
        if rows[-1] and text_width((rows[-1] + word).rstrip(), size, bold) > width:
            rows.append("")
        rows[-1] += word
    rows = [row.rstrip() for row in rows]
    if len(rows) > lines:
        last = rows[lines - 1] + " "
        while text_width(last + "…", size, bold) > width:
            last = last[:-1]
        rows = [*rows[: lines - 1], last.rstrip(" ,;:") + "…"]
    return rows


class Paper:
    """A sheet measured in inches from its top left corner, text in points; it shrinks to the Axes it is given."""

    def __init__(self, ax: Axes | None, width: float, height: float) -> None:
        if ax is None:
            self.result: Figure | Axes = Picture(figsize=(width, height), dpi=100)
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
        if not text:
            return
        if room:
            size *= min(1, room / max(text_width(line, size, bold, mono) for line in text.split("\n")))
        self.ax.text(
            x, y, text, color=colour, fontsize=size * self.scale, family=MONO if mono else SANS,
            weight="bold" if bold else "normal", ha=ha, va=va, linespacing=1.15, gid=gid or None,
        )  # fmt: skip

    def numbers(self, numbers: Iterable[tuple[float, float, int]], colour: str, size: float = 14) -> None:
        """Write many numbers (left end, middle, value) as one shape: a text of its own for each takes far longer."""
        shapes = [
            Path(np.multiply(shape.vertices, (1, -1)) / 72 + (x, y + 0.36 * size / 72), shape.codes)
            for x, y, number in numbers
            for shape in [digit_path(number, size)]
        ]
        if shapes:
            shape = Path.make_compound_path(*shapes)
            self.ax.add_artist(PathPatch(shape, facecolor=colour, linewidth=0, zorder=3))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = PAPER, edge: str = INK, *,
        weight: float = 1, hatch: str = "", round: float = 0, dashed: bool = False, gid: str = "", z: float = 1,
    ) -> None:  # fmt: skip
        """Draw a rectangle; `weight` is that of its edge in points, `round` the radius of its corners."""
        corners = FancyBboxPatch((x, y), width, height, boxstyle=f"round,pad=0,rounding_size={round}")
        patch = corners if round else Rectangle((x, y), width, height)
        patch.set(
            facecolor=fill, edgecolor=edge, linewidth=weight * self.scale, linestyle="--" if dashed else "-",
            hatch=hatch or None, zorder=z, gid=gid or None,
        )  # fmt: skip
        patch.set_hatch_linewidth(0.9 * self.scale)
        self.ax.add_artist(patch)

    def swatch(self, x: float, y: float, width: float, height: float, ink: Ink) -> None:
        """Fill a rectangle with a colour and its hatch."""
        self.box(x, y, width, height, ink.colour, INK, weight=0.6, hatch=ink.hatch)

    def ring(self, x: float, y: float, radius: float, colour: str) -> None:
        """Draw a small open circle."""
        self.ax.add_artist(
            Circle((x, y), radius, facecolor=PAPER, edgecolor=colour, linewidth=2 * self.scale, zorder=2)
        )

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
        self.ax.add_artist(
            PathPatch(
                path, fill=False, edgecolor=colour, linewidth=weight * self.scale, linestyle="--" if dashed else "-",
                capstyle="butt", joinstyle="miter", zorder=z, gid=gid or None,
            )
        )  # fmt: skip
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            size = 0.12 + 0.025 * weight
            dx, dy = (x1 - x0) / length * size, (y1 - y0) / length * size
            head = [
                (x1, y1),
                (x1 - dx - dy / 2, y1 - dy + dx / 2),
                (x1 - dx + dy / 2, y1 - dy - dx / 2),
                (x1, y1),
            ]
            self.ax.add_artist(
                PathPatch(Path(head), facecolor=colour, edgecolor=colour, linewidth=0, zorder=z)
            )


class Margins(NamedTuple):
    """Inches around a chart."""

    left: float
    right: float
    top: float
    bottom: float = 1.0


def chart(ax: Axes | None, width: float, height: float, m: Margins) -> tuple[Figure | Axes, Axes, float]:
    """Make Axes of a size in inches, or take those given; return what to hand back, the Axes, the scale."""
    result: Figure | Axes
    inner = width - m.left - m.right, height - m.top - m.bottom
    if ax is None:
        result = Picture(figsize=(width, height), dpi=100)
        ax = result.add_axes((m.left / width, m.bottom / height, inner[0] / width, inner[1] / height))
        scale = 1.0
    else:
        result = ax
        room, dpi = ax.get_window_extent(), ax.figure.dpi
        scale = min(1, room.width / dpi / inner[0], room.height / dpi / inner[1])
    ax.set_facecolor(PAPER)
    for side, spine in ax.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=INK, linewidth=scale)
    ax.tick_params(
        colors=INK, labelsize=SIZE * scale, labelfontfamily=SANS, width=scale, length=5 * scale, pad=5 * scale
    )
    return result, ax, scale


def font_of(scale: float, colour: str = INK, *, bold: bool = False) -> dict[str, Any]:
    """How a chart writes."""
    return {"fontsize": SIZE * scale, "color": colour, "family": SANS, "weight": "bold" if bold else "normal"}


def axis_labels(ax: Axes, scale: float, x: str, y: str = "") -> None:
    """Label both axes."""
    ax.set_xlabel(x, **font_of(scale), labelpad=6 * scale)
    ax.set_ylabel(y, **font_of(scale), labelpad=6 * scale)


def text_beside(
    ax: Axes, scale: float, x: float, y: float, text: str, *, gid: str, pale: bool = False
) -> None:
    """Write at the right of a point."""
    look = font_of(scale, PALE if pale else INK, bold=not pale)
    ax.annotate(
        text, (x, y), (7 * scale, 0), textcoords="offset points", va="center_baseline", gid=gid, **look
    )


def inner_key(ax: Axes, scale: float, handles: Sequence[Any], columns: int) -> None:
    """Put a legend over a chart."""
    font = FontProperties(family=SANS, size=SIZE * scale)
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, prop=font,
        labelcolor=INK, borderaxespad=0.3, columnspacing=1.5, handletextpad=0.5,
    )  # fmt: skip


def filled_with(patch: Patch, ink: Ink, scale: float) -> Patch:
    """Fill a bar, or a sample for a legend."""
    patch.set(facecolor=ink.colour, edgecolor=INK, hatch=ink.hatch or None, linewidth=0.7 * scale)
    patch.set_hatch_linewidth(0.9 * scale)
    return patch
