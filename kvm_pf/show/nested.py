# SPDX-License-Identifier: GPL-2.0-only
"""A picture of a guest's guest: the page that was meant, and the page that was looked up."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvm_pf.common.errors import InputError
from kvm_pf.guest.machine import Machine, Taken
from kvm_pf.show.draw import Paper, drawing
from kvm_pf.show.inks import BLUE, INK, PALE, RED
from kvm_pf.show.plot import KINDS
from kvm_pf.state import PAGE_SHIFT

_WIDTH, _BOX = 14.0, 3.4
_LEFT, _MIDDLE, _RIGHT = 0.6, (_WIDTH - _BOX) / 2, _WIDTH - _BOX - 0.6
_L2, _L1 = 0.35, 2.75


@drawing()
def two_arrows(taken: Taken, machine: Machine, ax: Axes | None = None) -> Figure | Axes:
    """Draw where L1's table leads for a page of L2's, and where the attribute was looked up.

    `taken`: a fault of L2's, with a nested page table of L1's, that `machine` has just taken.  Raises InputError for
    any other fault.
    """
    handler, outcome = taken.handler, taken.outcome
    if handler is None or handler.walk is None or outcome is None:
        raise InputError("a fault of L2's is wanted, one for which KVM walked L1's nested page table")
    page, gfn, walk = taken.addr >> PAGE_SHIFT, handler.fault.gfn, handler.walk
    paper = Paper(ax, _WIDTH, 5.6)
    paper.text(0.1, 0.2, "L2's memory", PALE, ha="left")
    paper.text(_WIDTH / 2, _L1 + 0.5, "L1's memory,\nas user space declared it", PALE)
    paper.box(_MIDDLE, _L2, _BOX, 0.75, gid="l2")
    paper.text(_MIDDLE + _BOX / 2, _L2 + 0.24, f"page {page:#x}", bold=True)
    paper.text(_MIDDLE + _BOX / 2, _L2 + 0.53, f"L2 {_access(taken)} here", room=_BOX - 0.2)

    start = _L2 + 0.75
    if outcome.lookups.count:
        _page(paper, _LEFT, machine, page, "looked-up")
        paper.line([(_MIDDLE + 0.6, start), (_LEFT + _BOX - 0.6, _L1)], RED, weight=4, arrow=True, dashed=True,
                   gid="arrow:looked-up")  # fmt: skip
        paper.text(
            0.1,
            start + 0.45,
            "looked up: the same number,\ntaken for a page of L1's",
            RED,
            ha="left",
            bold=True,
        )
    else:
        paper.text(_LEFT + _BOX / 2, _L1 + 0.5, "nothing was looked up", PALE)
    if walk.refused:
        paper.text(
            _RIGHT + _BOX / 2, _L1 + 0.5, "L1's table does not allow it:\nthe fault is L1's", BLUE, bold=True
        )
    else:
        _page(paper, _RIGHT, machine, gfn, "meant")
        paper.line(
            [(_MIDDLE + _BOX - 0.6, start), (_RIGHT + 0.6, _L1)],
            BLUE,
            weight=4,
            arrow=True,
            gid="arrow:meant",
        )
        paper.text(
            _WIDTH - 0.1,
            start + 0.45,
            "meant: where L1's nested\npage table leads",
            BLUE,
            ha="right",
            bold=True,
        )

    said = "private" if taken.handled.fault.is_private else "shared"
    paper.text(_LEFT + _BOX / 2, _L1 + 1.35, f"so the fault is {said}", RED, bold=True, room=_BOX + 1)
    if handler.faultin is not None:
        compared = "private" if machine.private(gfn) else "shared"
        paper.text(
            _RIGHT + _BOX / 2, _L1 + 1.35, f"compared with: {compared}", BLUE, bold=True, room=_BOX + 1
        )
    paper.text(_WIDTH / 2, 5.2, _end(taken), INK, bold=True, room=_WIDTH - 0.4, gid="end")
    return paper.result


def _page(paper: Paper, x: float, machine: Machine, gfn: int, gid: str) -> None:
    slot = machine.slots.find(gfn)
    kind = "private" if machine.private(gfn) else "shared"
    paper.box(x, _L1, _BOX, 1.05, gid=gid)
    paper.swatch(x, _L1 + 0.72, _BOX, 0.33, KINDS[kind])
    paper.text(x + _BOX / 2, _L1 + 0.2, f"gfn {gfn:#x}", bold=True)
    paper.text(
        x + _BOX / 2, _L1 + 0.5, f"{kind}, " + (f"slot {slot.id}" if slot else "no slot"), room=_BOX - 0.2
    )


def _access(taken: Taken) -> str:
    fault = taken.handled.fault
    return "writes" if fault.write else "fetches" if fault.exec else "reads"


def _end(taken: Taken) -> str:
    if taken.l1_exit:
        return "no comparison: L1 sees the fault as an exit of its guest"
    if taken.exit.exit_reason:
        return (
            f"they differ: -EFAULT, exit {taken.exit.exit_reason}, address {taken.exit.gpa:#x}, "
            f"flags {taken.exit.flags}"
        )
    ahead = taken.handler.prefetched if taken.handler else ()
    also = f"; mapped ahead without a question: gfn {', '.join(map(hex, ahead))}" if ahead else ""
    return "they agree: the page is mapped" + also if taken.ret > 0 else "user space emulates the access"
