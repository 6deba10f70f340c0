# SPDX-License-Identifier: GPL-2.0-only
"""Sixty-four bits to click, which are a picture of the number, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
from traitlets import Dict, Unicode, validate

from kvm_pf.bits import Bit
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import check
from kvm_pf.run.inputs import U64_MAX
from kvm_pf.show.inks import ORIGINS
from kvm_pf.show.markup import Html, bold, breakable, element, join, table

_HERE = Path(__file__).parent


class BitGrid(anywidget.AnyWidget):
    """A u64 as eight rows of eight buttons, for mouse, keyboard (arrows and the space bar) and screen reader.

    `value` is the number in hexadecimal text, `number` the same as an int; `bits` is the table that names the bits.
    """

    _esm = (_HERE / "bits.js").read_text(encoding="utf-8")
    _css = (_HERE / "bits.css").read_text(encoding="utf-8")
    value = Unicode("0x0").tag(sync=True)
    table = Dict().tag(sync=True)
    inks = Dict({who.value: {"colour": ink.colour, "line": ink.line} for who, ink in ORIGINS.items()}).tag(
        sync=True
    )
    description = Unicode().tag(sync=True)
    tooltip = Unicode("click a bit, or go there with the arrow keys and press the space bar").tag(sync=True)

    def __init__(self, bits: Sequence[Bit], description: str, number: int = 0) -> None:
        super().__init__(description=description)
        self.bits = bits
        self.number = number

    @validate("value")
    def _u64(self, proposal: dict[str, Any]) -> str:
        text = proposal["value"]
        try:
            number = int(text, 16)
        except ValueError:
            number = -1
        if not 0 <= number <= U64_MAX:
            raise InputError(
                f"{self.description}: value={text!r:.60}: it takes 0x and up to 16 hexadecimal digits"
            )
        return f"{number:#x}"

    @property
    def number(self) -> int:
        """The number, an unsigned 64-bit int."""
        return int(self.value, 16)

    @number.setter
    def number(self, number: int) -> None:
        self.value = f"{check('number', number, int, 64):#x}"

    @property
    def bits(self) -> Sequence[Bit]:
        """The table that names the bits."""
        return self._bits

    @bits.setter
    def bits(self, bits: Sequence[Bit]) -> None:
        self._bits = bits
        self.table = {
            str(row.bit): {
                "name": row.name, "setter": row.set_by.value, "means": f"{row.means} (set by {row.set_by.value})"
            }
            for row in bits
        }  # fmt: skip

    def picture(self) -> Html:
        """Return what the grid shows, to stand in a page without a kernel."""
        return layout(self.number, self.bits, self.description)


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
    name = breakable(row.name) if row else ""
    if value >> n & 1:
        return element("td", bold(join([f"{n} ■ ", name])), class_="on")
    return element("td", f"{n} □ ", name) if row else element("td", "□")
