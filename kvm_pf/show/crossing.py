# SPDX-License-Identifier: GPL-2.0-only
"""The picture of two parties and one page: who asks what, in which order, and who gets which answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvm_pf.common.errors import InputError
from kvm_pf.guest.crossing import Moment
from kvm_pf.guest.memory import PLACES
from kvm_pf.show.draw import Paper, drawing
from kvm_pf.show.inks import GREEN, INK, ORANGE, PALE, PAPER, PINK, RED, SKY, SOFT, WASH

_WIDTH, _LANE, _LEFT, _RIGHT = 14.0, 4.9, 0.15, 8.95
_STATE = ((5.3, 1.15, "attribute"), (6.5, 0.75, "count"), (7.3, 1.4, "entry"))
"""Where the cells of the shared state are: left edge, width, what they hold."""
_TOP, _ROW = 0.75, 0.62
_ANSWERS = {"RETRY": ORANGE, "FIXED": GREEN, "SPURIOUS": SKY, "EMULATE": PINK}


def _shared(moment: Moment) -> tuple[str, str, str]:
    return "private" if moment.private else "shared", str(moment.seq), moment.entry


@drawing()
def two_parties(moments: Sequence[Moment], ax: Axes | None = None) -> Figure | Axes:
    """Draw what `kvm_pf.guest.crossing.cross` returned, downwards in order.

    Left vCPU 0, right the other party; between them what both share: the attribute of the page, the count of
    invalidations (mmu_invalidate_seq), the page-table entry.  What a step changed is set in bold on a tinted ground.  A
    dashed line says that a fault is held.  Raises InputError if there is nothing to draw.
    """
    if not moments:
        raise InputError("there is no step to draw")
    paper = Paper(ax, _WIDTH, _TOP + _ROW * len(moments) + 0.1)
    other = "vCPU 1" if any(m.party and m.step in PLACES for m in moments) else "user space"
    for x, width, name in ((_LEFT, _LANE, "vCPU 0"), *_STATE, (_RIGHT, _LANE, other)):
        lane = name in ("vCPU 0", other)
        paper.text(x + width / 2, 0.4, name, INK if lane else PALE, bold=lane, room=width)
    lanes = {party: [n for n, m in enumerate(moments) if m.party == party] for party in (0, 1)}
    for before, after in pairwise(lanes[0]):
        if after - before > 1:
            points = [(_LEFT + _LANE / 2, _TOP + _ROW * n) for n in (before + 1, after)]
            paper.line(points, INK, weight=2.5, dashed=True, gid=f"held:{before}")
            x, y = _LEFT + _LANE / 2 + 0.15, _TOP + _ROW * (before + 1 + after) / 2
            paper.text(x, y, "held", PALE, ha="left")
    last: Moment | None = None
    for n, moment in enumerate(moments):
        y, x = _TOP + _ROW * n, (_LEFT, _RIGHT)[moment.party]
        _step(paper, x, y, moment, n)
        for at, (left, width, name) in enumerate(_STATE):
            now = _shared(moment)[at]
            new = last is not None and now != _shared(last)[at]
            paper.box(left, y + 0.06, width, _ROW - 0.12, WASH if new else PAPER, INK if new else SOFT,
                      weight=1.5 if new else 0.6, gid=f"{name}:{n}")  # fmt: skip
            paper.text(
                left + width / 2, y + _ROW / 2, now, INK if new else PALE, size=14, bold=new, room=width - 0.1
            )
        last = moment
    return paper.result


def _step(paper: Paper, x: float, y: float, moment: Moment, n: int) -> None:
    """Draw one step in its lane: the kernel's name of it, what it said, and the answer that ends a fault."""
    answer = moment.answer
    chip = 1.7 if len(answer) > 8 else 1.3
    width = _LANE - (chip + 0.08 if answer else 0)
    paper.box(x, y + 0.04, width, _ROW - 0.08, PAPER, INK, weight=1, round=0.06, gid=f"step:{n}")
    kernel = moment.step in PLACES
    if kernel:
        paper.text(x + 0.12, y + 0.19, moment.step, PALE, size=11, mono=True, ha="left", room=width - 0.2)
    paper.text(
        x + 0.12, y + (0.405 if kernel else _ROW / 2), moment.text, size=15, ha="left", room=width - 0.25
    )
    if answer:
        colour = _ANSWERS.get(answer, RED)
        paper.box(
            x + width + 0.08,
            y + 0.04,
            chip,
            _ROW - 0.08,
            PAPER,
            colour,
            weight=3,
            round=0.06,
            gid=f"answer:{n}",
        )
        paper.text(x + width + 0.08 + chip / 2, y + _ROW / 2, answer, size=14, bold=True, room=chip - 0.15)
