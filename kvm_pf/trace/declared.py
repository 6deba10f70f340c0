# SPDX-License-Identifier: GPL-2.0-only
"""Which memory was last made private or shared, as far as a trace tells: ranges of it, kept in order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

MOST = 1 << 18
"""The most conversions that are listed, and pieces of memory that are kept apart."""


class Span(NamedTuple):
    """A conversion: `private` says to what; by whom is `how`."""

    line: int
    time: float | None
    gpa: int
    size: int
    private: bool
    how: str


class Declared:
    """Conversions in their order, and which was the last at each address.

    `spans` lists the first MOST of them, `faults` and `memory_faults` count what each met until its memory was
    converted again; `more` counts the others.  `forgotten` says how often there were too many pieces of memory to
    keep apart, so that all were taken for unknown from there on.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.faults: list[int] = []
        self.memory_faults: list[int] = []
        self.more = self.forgotten = 0
        self._starts = [0]
        self._last: list[int | None] = [None]  # from _starts[n] up to the next: a conversion, and to what
        self._kinds: list[bool | None] = [None]

    def convert(self, span: Span) -> None:
        """Take the next conversion."""
        number: int | None = None
        if len(self.spans) < MOST:
            number = len(self.spans)
            self.spans.append(span)
            self.faults.append(0)
            self.memory_faults.append(0)
        else:
            self.more += 1
        if not span.size:
            return
        if len(self._starts) > MOST:
            self.forgotten += 1
            self._starts, self._last, self._kinds = [0], [None], [None]
        end = span.gpa + span.size
        after = bisect_right(self._starts, end) - 1  # the piece that the end cuts
        rest = (end, self._last[after], self._kinds[after])
        first = bisect_left(self._starts, span.gpa)
        starts = [span.gpa]
        last, kinds = [number], list[bool | None]([span.private])
        if rest[0] != (self._starts[after + 1] if after + 1 < len(self._starts) else None):
            starts, last, kinds = [*starts, rest[0]], [*last, rest[1]], [*kinds, rest[2]]
        self._starts[first : after + 1] = starts
        self._last[first : after + 1] = last
        self._kinds[first : after + 1] = kinds

    def at(self, gpa: int) -> tuple[bool | None, int | None]:
        """Say whether an address was last made private, None if neither was seen, and by which conversion."""
        n = bisect_right(self._starts, gpa) - 1
        return self._kinds[n], self._last[n]

    def met(self, number: int | None, memory_fault: bool) -> None:
        """Count a fault in memory that a conversion declared."""
        if number is not None:
            self.faults[number] += 1
            self.memory_faults[number] += memory_fault
