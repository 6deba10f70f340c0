# SPDX-License-Identifier: GPL-2.0-only
"""The colours of pictures and widgets, and what says the same without colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvm_pf.bits import AMD, CPU, INTEL, KVM, NOBODY, Origin

INK, PAPER, PALE, SOFT = "#1a1a1a", "#ffffff", "#767676", "#d0d0d0"
WASH = "#f2f2f2"
BLUE, SKY, GREEN, ORANGE, RED, PINK = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""


class Ink(NamedTuple):
    """A colour, and what says the same without it: matplotlib's hatch of an area, CSS's style of a line."""

    colour: str
    hatch: str
    line: str = "solid"


ORIGINS: Mapping[Origin, Ink] = {
    CPU: Ink(BLUE, ""),
    AMD: Ink(ORANGE, "///", "dashed"),
    INTEL: Ink(SKY, "...", "dotted"),
    KVM: Ink(GREEN, "xxx", "double"),
    NOBODY: Ink(SOFT, ""),
}
