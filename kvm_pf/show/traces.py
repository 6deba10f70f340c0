# SPDX-License-Identifier: GPL-2.0-only
"""Pictures of a trace, and the small tables that they are drawn from.

Every function takes the table of faults that `kvm_pf.trace.read` returns.  Faults are counted before anything is
drawn, so three rows and three million take the same paper.

table             picture              what
co_occurrence     bits_together        which bits of a code are set together
outcomes          access_by_outcome    what the guest did, and how it ended
over_time         faults_over_time     how many faults, when, by access
life              page_life            all faults of one page, with its conversions
pages_over_time   storm                which pages fault when, and what repeats itself

A table without a fault gives a picture that says so.  InputError is raised for what is no such table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from kvm_pf.bits import PFERR
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.run.inputs import brief
from kvm_pf.run.meanings import ENCODINGS
from kvm_pf.show.draw import (
    Margins,
    Paper,
    axis_labels,
    chart,
    drawing,
    filled_with,
    font_of,
    inner_key,
    text_width,
    wrap,
)
from kvm_pf.show.inks import BLUE, GREEN, INK, ORANGE, PALE, PAPER, PINK, SKY, SOFT, Ink
from kvm_pf.trace import storms

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "access_by_outcome", "bits_together", "co_occurrence", "faults_over_time", "life", "outcomes", "over_time",
    "page_life", "pages_over_time", "storm",
)  # fmt: skip

NOT_TOLD = "not told"

ACCESSES: Mapping[str, Ink] = {
    "read": Ink(BLUE, ""),
    "write": Ink(ORANGE, "///"),
    "fetch": Ink(GREEN, "xxx"),
    "walk": Ink(PINK, "..."),
    "write or walk": Ink(SKY, "\\\\\\"),
    NOT_TOLD: Ink(SOFT, ""),
}
"""How each kind of access is drawn; the last for codes that do not tell it, as an EPT misconfiguration."""

MARKERS = {"read": "o", "write": "v", "fetch": "s", "walk": "D", "write or walk": "P", NOT_TOLD: "X"}

MOST = 10
"""The most outcomes or pages that a picture shows by name."""

NO_PAGE = -1
"""Stands for "no address" in a table by page; OTHERS for all pages that are not named."""
OTHERS = -2


# ----------------------------------------------------------------------------------------------------
# What a table must have


def _checked(faults: Any, *columns: str) -> Any:
    import pandas as pd

    if not isinstance(faults, pd.DataFrame):
        raise InputError(f"{brief(faults)} is no table of faults; kvm_pf.trace.read returns one")
    for name in columns:
        if name not in faults:
            raise InputError(f"the table has no column {name!r}; a table of kvm_pf.trace.read has it")
    return faults


def _access(faults: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The access of each fault as a place in ACCESSES, that of NOT_TOLD where there is none."""
    import pandas as pd

    codes, names = pd.factorize(faults["access"])
    kinds = list(ACCESSES)
    places = [kinds.index(name) if name in ACCESSES else len(kinds) - 1 for name in names]
    return np.array([*places, len(kinds) - 1])[codes]


def _ends(faults: Any) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """How each fault ended as a place in the list of endings that is returned with it."""
    import pandas as pd

    codes, names = pd.factorize(faults["outcome"].fillna("not shown"))
    return codes, [str(name) for name in names]


def _nothing(ax: Axes | None, words: str) -> Figure | Axes:
    """A picture that only says why there is none."""
    paper = Paper(ax, 14, 1)
    paper.text(0.3, 0.5, words, PALE, ha="left", gid="says")
    return paper.result


# ----------------------------------------------------------------------------------------------------
# Time


class _Clock(NamedTuple):
    """Where each fault stands on the axis: seconds after the first one's, or its number if the trace has no times.

    `left_out` counts faults without a time in a trace that has times; `known` says of each fault if it stands there.
    """

    places: np.ndarray[Any, np.dtype[np.float64]]
    known: np.ndarray[Any, np.dtype[np.bool_]]
    start: float | None
    left_out: int

    @property
    def span(self) -> float:
        """From the first to the last."""
        return float(self.places.max()) if len(self.places) else 0.0

    @property
    def unit(self) -> tuple[float, str]:
        """How many of the axis' units a second or a fault is, and the axis' label."""
        if self.start is None:
            return 1, "number of the fault (the trace has no times)"
        factor, name = _unit(self.span / 2)
        more = f"; {self.left_out:,} without a time left out" if self.left_out else ""
        return factor, f"{name} after {self.start:.6f} s{more}"


def _unit(seconds: float) -> tuple[float, str]:
    """The largest unit of which `seconds` is one or more: how many make a second, and its name."""
    return next(((f, name) for f, name in ((1.0, "s"), (1e3, "ms")) if seconds * f >= 1), (1e6, "µs"))


def _clock(faults: Any) -> _Clock:
    times = faults["time"].to_numpy(dtype="float64", na_value=np.nan)
    known = ~np.isnan(times)
    if not known.any():
        return _Clock(np.arange(len(times), dtype="float64"), np.ones(len(times), dtype=bool), None, 0)
    start = float(times[known].min())
    return _Clock(times[known] - start, known, start, int((~known).sum()))


def _bins(at: Any, span: float, bins: int) -> tuple[Any, float]:
    """Cut a span into bins; return the bin of each place, and a bin's width."""
    width = span / bins if span else 1.0
    return np.minimum((at / width).astype(np.int64), bins - 1), width


# ----------------------------------------------------------------------------------------------------
# The tables


@typed()
def co_occurrence(faults: pd.DataFrame, column: str = "error_code") -> pd.DataFrame:
    """Count for each pair of bits the faults in which both are set; the diagonal counts each bit alone.

    `column` is error_code (of the fault path: the same bits for every CPU) or raw_code, as printed, if all codes are
    of one encoding.  Index and columns are the numbers of the bits that occur, in order.
    """
    import pandas as pd

    codes = _checked(faults, column, "encoding")[column].dropna()
    values, counts = np.unique(codes.to_numpy(dtype="uint64"), return_counts=True)
    together = np.zeros((64, 64), dtype=np.int64)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        bits = [n for n in range(64) if value >> n & 1]
        together[np.ix_(bits, bits)] += count
    seen = np.flatnonzero(together.diagonal())
    return pd.DataFrame(together[np.ix_(seen, seen)], seen.tolist(), seen.tolist())


def outcomes(faults: pd.DataFrame, most: int = MOST) -> pd.DataFrame:
    """Count the faults by how they ended (index, the most frequent first) and access (columns, those that occur).

    Of more than `most` outcomes, the rarest share a last row, "others".
    """
    import pandas as pd

    ends, names = _ends(_checked(faults, "access", "outcome"))
    kinds = len(ACCESSES)
    cells = np.bincount(ends * kinds + _access(faults), minlength=len(names) * kinds)
    counted = pd.DataFrame(cells.reshape(-1, kinds), names, list(ACCESSES))
    order = np.argsort(-counted.sum(axis=1).to_numpy(), kind="stable")
    counted = counted.iloc[order].loc[:, (counted.sum() > 0).to_numpy()]
    if len(counted) > most:
        rest = counted.iloc[most - 1 :]
        counted = pd.concat([counted.iloc[: most - 1], rest.sum().to_frame(f"others ({len(rest)} kinds)").T])
    return counted.rename_axis(index="outcome", columns="access")


def over_time(faults: pd.DataFrame, bins: int = 60) -> pd.DataFrame:
    """Count the faults in each of `bins` equal parts of the trace (index: where a part begins) by access (columns).

    A part begins so many seconds after the first fault; in a trace without times, at the fault of that number.
    """
    import pandas as pd

    clock = _clock(_checked(faults, "time", "access"))
    bins = bins if clock.span else 1
    place, width = _bins(clock.places, clock.span, bins)
    kinds = _access(faults)[clock.known]
    counted = np.bincount(place * len(ACCESSES) + kinds, minlength=bins * len(ACCESSES))
    table = pd.DataFrame(counted.reshape(bins, -1), np.arange(bins) * width, list(ACCESSES))
    return table.loc[:, table.sum() > 0].rename_axis(index="from", columns="access")


def life(faults: pd.DataFrame, gfn: int, bins: int = 200) -> pd.DataFrame:
    """List what happened to one page: `at` (seconds after the first fault of the page), `access`, `outcome`, `faults`.

    Faults that are alike in one of `bins` equal parts of its life are one row, which stands where the first did.
    """
    import pandas as pd

    mine = _of_page(faults, gfn)
    clock = _clock(mine)
    place, _ = _bins(clock.places, clock.span, bins)
    ends, names = _ends(mine)
    kinds = list(ACCESSES)
    group = (place * len(names) + ends[clock.known]) * len(kinds) + _access(mine)[clock.known]
    alike, counts = np.unique(group, return_counts=True)
    rows = pd.DataFrame({
        "at": np.minimum.reduceat(clock.places[np.argsort(group, kind="stable")], _starts(counts)),
        "access": [kinds[n % len(kinds)] for n in alike],
        "outcome": [names[n // len(kinds) % len(names)] for n in alike],
        "faults": counts,
    })  # fmt: skip
    return rows.sort_values("at", kind="stable").reset_index(drop=True)


def _starts(counts: Any) -> Any:
    """Where each group begins in a sorted sequence of groups of these sizes."""
    return np.cumsum(counts) - counts


def _of_page(faults: Any, gfn: int) -> Any:
    columns = ["line", "time", "access", "outcome"]
    mine = (_checked(faults, *columns, "gfn")["gfn"] == gfn).fillna(False).to_numpy(dtype=bool)
    return faults.loc[mine, columns]


def pages_over_time(faults: pd.DataFrame, most: int = MOST, bins: int = 120) -> pd.DataFrame:
    """Count the faults of each of the `most` pages with the most (index: gfn) in equal parts of the trace (columns).

    Below them stand OTHERS (all other pages) and NO_PAGE (faults without an address), if there are any.
    """
    import pandas as pd

    clock = _clock(_checked(faults, "time", "gfn"))
    place, width = _bins(clock.places, clock.span, bins)
    codes, pages = pd.factorize(faults["gfn"][clock.known])
    named = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(pages)), kind="stable")[:most]
    row_of = np.full(len(pages) + 1, len(named))  # the last stands for -1, no address
    row_of[named] = np.arange(len(named))
    row_of[-1] = len(named) + 1
    counted = np.bincount(row_of[codes] * bins + place, minlength=(len(named) + 2) * bins)
    index = [int(page) for page in pages[named]] + [OTHERS, NO_PAGE]
    table = pd.DataFrame(counted.reshape(-1, bins), index, np.arange(bins) * width)
    return table[(table.sum(axis=1) > 0).to_numpy()].rename_axis(index="gfn", columns="from")


# ----------------------------------------------------------------------------------------------------
# Tables as squares


def _shade(share: float) -> tuple[float, float, float]:
    """A blue, the darker the more; 0 is paper."""
    pale, dark = (0.87, 0.92, 0.96), (0.0, 0.25, 0.45)
    r, g, b = (low + (high - low) * share for low, high in zip(pale, dark, strict=True))
    return r, g, b


def _squares(
    ax: Axes | None, table: Any, rows: Sequence[str], columns: Sequence[str], x: str, y: str, upright: bool
) -> Figure | Axes:
    """Draw a table of counts, each number in its square, dark where it is large."""
    left = 0.9 + max(text_width(name) for name in rows)
    above = 0.45 + (max(text_width(name) for name in columns) if upright else 0.25)
    most = int(table.to_numpy().max())
    wide = max(
        0.62,
        0.2 + text_width(f"{most:,}"),
        0 if upright else max(1.5, 0.25 + max(text_width(n) for n in columns)),
    )
    inner = wide * len(columns)
    right = max(0.3, 0.15 + (text_width(x) - inner) / 2)
    size = left + inner + right, above + max(0.46 * len(rows), text_width(y) - above) + 0.55
    result, ax, scale = chart(ax, *size, Margins(left, right, above, 0.55))
    for (r, c), count in np.ndenumerate(table.to_numpy()):
        share = float(np.log1p(count) / np.log1p(most)) if count else 0.0
        square = Rectangle((c - 0.5, r - 0.5), 1, 1, gid=f"square:{r}:{c}")
        square.set(facecolor=_shade(share) if count else PAPER, edgecolor=SOFT, linewidth=0.7 * scale)
        ax.add_patch(square)
        colour = PALE if not count else PAPER if share > 0.55 else INK
        ax.text(
            c,
            r,
            f"{count:,}",
            ha="center",
            va="center_baseline",
            gid=f"count:{r}:{c}",
            **font_of(scale, colour),
        )
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    axis_labels(ax, scale, x, y)
    return result


def _bit_names(faults: Any, column: str) -> Mapping[int, str]:
    if column == "error_code":
        table = PFERR
    else:
        kinds = sorted(set(faults.loc[faults[column].notna(), "encoding"].dropna()))
        tables = {ENCODINGS[kind].table for kind in kinds if kind in ENCODINGS}
        if len(tables) > 1:
            raise InputError(
                f"the codes of {column!r} are of several encodings ({', '.join(kinds)}): choose one "
                '(faults[faults.encoding == "ept"]), or draw error_code'
            )
        table = next(iter(tables), PFERR)
    return {row.bit: row.name for row in table}


@drawing()
def bits_together(faults: pd.DataFrame, column: str = "error_code", ax: Axes | None = None) -> Figure | Axes:
    """Draw which bits of `column` are set together: a square for each pair, with the number of faults.

    The diagonal counts each bit.  Raises InputError for raw codes of several encodings.
    """
    table = co_occurrence(faults, column)
    if table.empty:
        return _nothing(ax, f"no fault of {len(faults):,} has a bit in {column}: nothing to draw")
    known = _bit_names(faults, column)
    names = [f"{known.get(n) or 'no name'} {n}" for n in table.index]
    total = int(faults[column].notna().sum())
    return _squares(ax, table, names, names, f"faults with both bits, of {total:,}", f"bit of {column}", True)


@drawing()
def access_by_outcome(faults: pd.DataFrame, ax: Axes | None = None) -> Figure | Axes:
    """Draw how the faults ended (rows) by what the guest did (columns): the numbers, dark where they are large."""
    table = outcomes(faults)
    if table.empty:
        return _nothing(ax, "no fault is here: nothing to draw")
    rows = [wrap(str(name), 6.5, 1, " ")[0] for name in table.index]
    label = f"access of the guest ({int(table.to_numpy().sum()):,} faults)"
    return _squares(ax, table, rows, list(map(str, table)), label, "how the fault ended", False)


# ----------------------------------------------------------------------------------------------------
# Pictures over time


def _time_ticks(ax: Axes, clock: _Clock, scale: float, y: str, *, half: float = 0) -> None:
    """Label the axis of time, in a unit that suits the span."""
    factor, label = clock.unit
    end = clock.span * factor
    ticks = [tick for tick in MaxNLocator(6).tick_values(0, end) if 0 <= tick <= end * 1.001] if end else [0]
    ax.set_xticks([tick / factor + half for tick in ticks], [f"{tick:,g}" for tick in ticks])
    axis_labels(ax, scale, label, y)


def _duration(seconds: float) -> str:
    factor, name = _unit(seconds)
    return f"{seconds * factor:,.3g} {name}"


@drawing()
def faults_over_time(faults: pd.DataFrame, ax: Axes | None = None) -> Figure | Axes:
    """Draw how many faults there were in each part of the trace, by access."""
    table = over_time(faults)
    if table.empty or not len(faults):
        return _nothing(ax, "no fault is here: nothing to draw")
    clock = _clock(faults)
    width = clock.span / len(table) or 1.0
    most = int(table.sum(axis=1).max())
    left = 1.0 + text_width(f"{most:,}")
    result, ax, scale = chart(ax, 14, 4.6, Margins(left, 0.4, 0.6, 0.95))
    base = np.zeros(len(table), dtype=np.int64)
    samples = []
    for kind, ink in ACCESSES.items():
        if kind not in table:
            continue
        counts = table[kind].to_numpy()
        for x, low, count in zip(table.index, base.tolist(), counts.tolist(), strict=True):
            if count:
                bar = Rectangle((x, low), width, count, gid=f"bar:{kind}")
                ax.add_patch(filled_with(bar, ink, scale))
        base = base + counts
        samples.append(filled_with(Patch(label=f"{kind} {int(counts.sum()):,}"), ink, scale))
    ax.set(xlim=(0, width * len(table)), ylim=(0, most * 1.05))
    heights = [int(tick) for tick in MaxNLocator(5, integer=True).tick_values(0, most) if tick <= most]
    ax.set_yticks(heights, [f"{height:,}" for height in heights])
    part = f"faults in each {_duration(width)}" if clock.start is not None and clock.span else "faults"
    _time_ticks(ax, clock, scale, part)
    inner_key(ax, scale, samples, len(samples))
    return result


DECLARED = {True: Ink(GREEN, "xxx"), False: Ink(SKY, "")}
"""How a page that was declared private, or shared, is drawn."""


def _bands(conversions: Any, gfn: int, mine: Any, clock: _Clock) -> list[tuple[float, float, bool]]:
    """Where the page was private or shared: (from, to, private), on the clock of its faults.

    A conversion without a time stands at the next fault of the page by line.
    """
    import pandas as pd

    if conversions is None:
        return []
    table = _checked(conversions, "line", "time", "gpa", "size", "private")
    first, lines = gfn << 12, mine["line"].to_numpy(dtype="int64")[clock.known]
    places = []
    for row in table.itertuples():
        if int(row.gpa) <= first < int(row.gpa) + int(row.size):
            after = np.flatnonzero(lines > int(row.line))
            at = float(clock.places[after[0]]) if len(after) else clock.span
            if clock.start is not None and pd.notna(row.time):
                at = float(row.time) - clock.start
            places.append((at, bool(row.private)))
    ends = [*(at for at, _ in places[1:]), float("inf")][: len(places)]
    return [(at, end, private) for (at, private), end in zip(places, ends, strict=True)]


@drawing(gfn=64)
def page_life(
    faults: pd.DataFrame, gfn: int, conversions: pd.DataFrame | None = None, ax: Axes | None = None
) -> Figure | Axes:
    """Draw the life of one page: each fault on it, in the row of how it ended, its access by the mark.

    `gfn` is the page's number, `conversions` the table of kvm_pf.trace.conversions: then a row tells when the page
    was declared private or shared.
    """
    rows = life(faults, gfn)
    mine = _of_page(faults, gfn)
    if rows.empty:
        return _nothing(ax, f"no fault is on gfn {gfn:#x}: nothing to draw")
    clock = _clock(mine)
    bands = _bands(conversions, gfn, mine, clock)
    lanes = rows.groupby("outcome", sort=False)["faults"].sum()
    names = [wrap(str(name), 5.0, 1, " ")[0] for name in lanes.index]
    labels = (["declared"] if bands else []) + names
    left = 0.85 + max(map(text_width, [*labels, "declared"]))
    right = 0.35 + text_width(f"{lanes.max():,}", bold=True)
    result, ax, scale = chart(ax, 14, 1.75 + 0.55 * max(2, len(labels)), Margins(left, right, 0.6, 0.95))
    low = min([0.0, *(at for at, _, _ in bands)])
    span = clock.span - low or 1.0
    edges = low - 0.03 * span, low + 1.03 * span
    for start, end, private in bands:
        band = Rectangle(
            (start, -0.3), min(end, edges[1]) - start, 0.6, gid=f"band:{'private' if private else 'shared'}"
        )
        ax.add_patch(filled_with(band, DECLARED[private], scale))
    first = len(labels) - len(names)
    for y, (name, total) in enumerate(lanes.items(), first):
        ax.axhline(y, color=SOFT, linewidth=0.7 * scale, zorder=0)
        ax.annotate(
            f"{total:,}", (1, y), (8 * scale, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center_baseline", gid=f"total:{name}", **font_of(scale, bold=True),
        )  # fmt: skip
        for access, part in rows[rows["outcome"] == name].groupby("access", sort=False):
            ax.plot(
                part["at"], [y] * len(part), MARKERS[str(access)], color=ACCESSES[str(access)].colour,
                markersize=13 * scale, markeredgecolor=INK, markeredgewidth=scale, gid=f"mark:{name}:{access}",
            )  # fmt: skip
    ax.set(xlim=edges, ylim=(len(labels) - 0.4, -0.6))
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    _time_ticks(ax, clock, scale, f"gfn {gfn:#x}")
    seen = [kind for kind in ACCESSES if (rows["access"] == kind).any()]
    handles: list[Any] = [
        ax.plot([], [], MARKERS[kind], color=ACCESSES[kind].colour, markersize=13 * scale, markeredgecolor=INK,
                label=kind)[0]
        for kind in seen
    ]  # fmt: skip
    kinds = [kind for kind in (True, False) if any(private is kind for _, _, private in bands)]
    handles += [
        filled_with(Patch(label="private" if kind else "shared"), DECLARED[kind], scale) for kind in kinds
    ]
    inner_key(ax, scale, handles, len(handles))
    return result


def _page_name(gfn: int) -> str:
    return {OTHERS: "other pages", NO_PAGE: "no address"}.get(gfn) or f"gfn {gfn:#x}"


def _storm_words(letter: str, row: Any) -> str:
    import pandas as pd

    who = f"vCPU {row.vcpu}, " if pd.notna(row.vcpu) else f"pid {row.pid}, " if pd.notna(row.pid) else ""
    rip = f", rip {int(row.rip):#x}" if pd.notna(row.rip) else ""
    rate = f" in {_duration(float(row.span))}, {row.rate:,.0f} a second" if pd.notna(row.rate) else ""
    turn = f", a cycle of {row.cycle}" if row.cycle > 1 else ""
    return f"{letter}: {who}{row.faults:,} faults{rate}{turn}{rip}: {row.why}; {row.stuck_on}"


@drawing()
def storm(
    faults: pd.DataFrame, found: pd.DataFrame | None = None, most: int = 3, ax: Axes | None = None
) -> Figure | Axes:
    """Draw which pages fault when, and frame the storms: what repeats itself, how fast, and on which page.

    `found` is a table of kvm_pf.trace.storms (made of `faults` if it is not given), of which the first `most` are
    drawn and told.
    """
    table = pages_over_time(_checked(faults, "line", "vcpu", "pid", "rip"))
    if table.empty:
        return _nothing(ax, "no fault is here: nothing to draw")
    shown = (storms(faults) if found is None else _checked(found, "first_line", "why", "stuck_on")).head(most)
    told = [_storm_words("ABCDEFGH"[n % 8], row) for n, row in enumerate(shown.itertuples())]
    words = [line for text in told for line in wrap(text, 13.3, 2, " ")]
    words = words or ["no storm: nothing repeats itself five times in a row on one vCPU"]
    names = [_page_name(int(gfn)) for gfn in table.index]
    left, bottom = 0.9 + max(map(text_width, names)), 1.05 + 0.3 * len(words)
    right = 0.45 + text_width(f"{table.sum(axis=1).max():,}", bold=True)
    size = 14, 0.75 + 0.5 * len(names) + bottom
    result, ax, scale = chart(ax, *size, Margins(left, right, 0.65, bottom))
    clock = _clock(faults)
    width = float(np.diff(table.columns)[0])
    most_here = int(table.to_numpy().max())
    for (y, x), count in np.ndenumerate(table.to_numpy()):
        if count:
            share = float(np.log1p(count) / np.log1p(most_here))
            ax.add_patch(
                Rectangle((x * width, y - 0.32), width, 0.64, facecolor=_shade(share), linewidth=0, gid=f"at:{y}")
            )  # fmt: skip
    for y, total in enumerate(table.sum(axis=1)):
        ax.annotate(
            f"{total:,}", (1, y), (8 * scale, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center_baseline", gid=f"total:{y}", **font_of(scale, bold=True),
        )  # fmt: skip
    for letter, row in zip("ABCDEFGH", shown.itertuples(), strict=False):
        _frame_storm(ax, scale, letter, row, faults, clock, table, width)
    end = width * len(table.columns)
    ax.set(xlim=(-0.025 * end, end), ylim=(len(names) - 0.4, -0.7))
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    _time_ticks(ax, clock, scale, "page")
    for n, line in enumerate(words):
        ax.annotate(
            line, (0, 0), ((0.3 - left) * 72 * scale, -(0.95 + 0.3 * n) * 72 * scale), xycoords="axes fraction",
            textcoords="offset points", va="top", annotation_clip=False, gid=f"told:{n}", **font_of(scale),
        )  # fmt: skip
    part = f" in {_duration(width)}" if clock.start is not None else ""
    steps = sorted({1, round(most_here**0.5), most_here})
    samples = [
        Patch(
            label=f"{n:,} fault{'s' if n > 1 else ''}{part}",
            facecolor=_shade(float(np.log1p(n) / np.log1p(most_here))),
        )
        for n in steps
    ]
    inner_key(ax, scale, samples, len(samples))
    return result


def _frame_storm(
    ax: Axes, scale: float, letter: str, row: Any, faults: Any, clock: _Clock, table: Any, width: float
) -> None:
    """Draw a frame around a storm in the row of each of its pages, with its letter."""
    import pandas as pd

    line = faults["line"]
    inside = ((line >= row.first_line) & (line <= row.last_line)).to_numpy(dtype=bool)
    for name in ("vcpu", "pid"):
        value = getattr(row, name)
        same = faults[name].isna() if pd.isna(value) else faults[name] == value
        inside &= same.fillna(False).to_numpy(dtype=bool)
    at = clock.places[inside[clock.known]]
    if not len(at):
        return
    rows = {int(gfn): y for y, gfn in enumerate(table.index)}
    pages: list[int] = faults["gfn"][inside].dropna().unique().tolist() or [NO_PAGE]
    for y in sorted({rows.get(int(page), rows.get(OTHERS, 0)) for page in pages}):
        first, last = (int(min(each // width, len(table.columns) - 1)) for each in (at.min(), at.max()))
        x0, x1 = first * width, (last + 1) * width
        frame = Rectangle(
            (x0, y - 0.4), x1 - x0, 0.8, fill=False, edgecolor=INK, linewidth=2 * scale, clip_on=False
        )
        frame.set_gid(f"storm:{letter}:{y}")
        ax.add_patch(frame)
        ax.annotate(
            letter, (x0, y), (-4 * scale, 0), textcoords="offset points", ha="right", va="center_baseline",
            gid=f"letter:{letter}:{y}", annotation_clip=False, **font_of(scale, bold=True),
        )  # fmt: skip
