# SPDX-License-Identifier: GPL-2.0-only
"""Find the same faults again and again, table by table, in memory that does not grow with the storm.

A storm is a cycle of up to LONGEST_CYCLE faults (rip, address, code, kind of exit) that one vCPU comes back to.  The
faults of each vCPU are looked at once, in order; the shortest cycle that holds is taken, from its first fault until
the first that does not fit.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_pf.bits import PFERR_GUEST_ENC_MASK
from kvm_pf.state import PAGE_SHIFT
from kvm_pf.trace.faults import SHARED, kinds

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LONGEST_CYCLE = 8
"""The most faults that one turn of a storm may have."""

COMPILED_ROWS = 1 << 17
"""From this many faults on, compiling the search takes less time than it saves."""

MOST_VCPUS = 1 << 16
"""The most vCPUs that are followed at once; if there are more, all are followed anew."""


def search(
    who: Any,
    signature: Any,
    first: int,
    least: int,
    ring: Any,
    seen: Any,
    streak: Any,
    cycle: Any,
    opened: Any,
) -> int:
    """Follow the faults from `first` on; write each beginning of a storm to `opened`, return how many there are.

    For each fault `who` has the number of its vCPU and `signature` what it is.  The state of each vCPU: `ring`, its
    last signatures; `seen`, its faults, and at [1] those that belong to no storm since the last one ended;
    `streak[c]`, how many faults in a row were like the one `c` before; `cycle`, that of the storm it is in, or 0.
    A row of `opened` is the fault's place and the cycle, or the place and 0 where a storm ended.
    """
    count = 0
    for n in range(first, len(who)):
        w, s = who[n], signature[n]
        at, free = seen[w][0], seen[w][1]
        if cycle[w] and ring[w][(at - cycle[w]) % 8] != s:
            opened[count][0], opened[count][1] = n, 0
            count += 1
            cycle[w] = free = 0
            for c in range(1, 9):
                streak[w][c] = 0
        if not cycle[w]:
            for c in range(1, 9):
                if c <= free and ring[w][(at - c) % 8] == s:
                    streak[w][c] += 1
                    if not cycle[w] and streak[w][c] + c >= max(least, 3 * c):
                        cycle[w] = c
                        opened[count][0], opened[count][1] = n, c
                        count += 1
                else:
                    streak[w][c] = 0
        ring[w][at % 8] = s
        seen[w][0], seen[w][1] = at + 1, free + 1
    return count


@functools.cache
def _compiled() -> Callable[..., int]:
    """Compile the search, or load it: a process that reads a long trace need not wait for it."""
    from kvm_pf.run.compiler import kept, numba

    line, rows = numba.int64[::1], numba.int64[:, ::1]
    signature = numba.types.Array(numba.uint64, 1, "C", readonly=True)
    number = numba.int64
    types = (line, signature, number, number, numba.uint64[:, ::1], rows, rows, line, rows)

    def compiled(cached: bool) -> Any:
        run = numba.njit(nogil=True, cache=cached)(search)
        run.compile(types)
        return run

    run: Callable[..., int] = kept(compiled)
    return run


class _Turn(NamedTuple):
    """A fault of a storm's first turn: what is told of it."""

    rip: Any
    address: Any
    raw_code: Any
    meaning: str
    private: bool | None = None

    @property
    def gpa(self) -> Any:
        """The address, a TDX guest's without its shared bit."""
        import pandas as pd

        return self.address if pd.isna(self.address) else without_shared(int(self.address), self.meaning)


class Ask(NamedTuple):
    """A memory fault of a storm: at which page, for private memory or shared, and what the page was declared."""

    gfn: int
    private: bool | None
    declared: bool | None


@dataclass
class Storm:
    """One storm so far: whose, how many faults, the first turn, and how its faults ended.

    `ends` counts the endings for each fault of a turn, `asked` what its memory faults ask for; `conversions` says how
    many conversions of their pages the trace has meanwhile.
    """

    vcpu: Any
    pid: Any
    cycle: int
    turn: tuple[_Turn, ...]
    first_line: int
    start: Any
    last_line: int = 0
    end: Any = None
    faults: int = 0
    ends: list[Counter[str]] = field(default_factory=list)
    asked: Counter[Ask] = field(default_factory=Counter)
    conversions: int = 0
    zapped: bool = False

    def __post_init__(self) -> None:
        self.ends = [Counter() for _ in range(self.cycle)]


class Finder:
    """Find storms in tables of faults that follow one another; `found` has all so far, those going on too.

    `least` is the fewest faults that count.  Of more than `most` storms the longest are kept; `dropped` counts the
    others.
    """

    def __init__(self, least: int = 5, most: int = 10_000) -> None:
        self.least, self.most, self.dropped = least, most, 0
        self.ended: list[Storm] = []
        self.going: dict[int, Storm] = {}
        self._vcpus: dict[tuple[Any, Any], int] = {}
        self._tail: pd.DataFrame | None = None
        self._words: pd.DataFrame | None = None
        self._rows = 0
        self._state: list[Any] = []

    @property
    def found(self) -> list[Storm]:
        """All storms, the longest first, else in the order of the trace."""
        return sorted(
            [*self.ended, *self.going.values()], key=lambda storm: (-storm.faults, storm.first_line)
        )

    def add(self, part: pd.DataFrame) -> None:
        """Take the next faults: a table with the columns of `kvm_pf.trace.read`."""
        import numpy as np
        import pandas as pd

        if not len(part):
            return
        if len(self._vcpus) > MOST_VCPUS:
            self._forget()
        table = part[[*_NUMBERS]].assign(signature=signatures(part))
        before = 0 if self._tail is None else len(self._tail)
        if self._tail is not None:
            table = pd.concat([self._tail, table], ignore_index=True)
        words = part.reindex(columns=[*_WORDS])  # a table of one's own has no declarations
        who = self._who(table)
        self._rows += len(part)
        self._grow(self._rows >= COMPILED_ROWS)
        signature = table["signature"].to_numpy()
        opened: Any = np.zeros((2 * len(table), 2), dtype=np.int64)
        if self._is_compiled:
            from kvm_pf.run.compiler import read_only

            signature = read_only(np.ascontiguousarray(signature))
            count = _compiled()(who, signature, before, self.least, *self._state, opened)
        else:
            rows = opened.tolist()
            ring, seen, streak, cycle = self._state
            plain = who.tolist(), signature.tolist()
            count = search(*plain, before, self.least, ring, seen, streak, cycle, rows)
            opened = np.array(rows, dtype=np.int64).reshape(-1, 2)
        self._take(_Both(self._words, before, words), table, before, who, opened[:count].tolist())
        tail = np.sort(_last(who, max(self.least, 3 * LONGEST_CYCLE)))
        self._words = _Both(self._words, before, words).at(tail)
        self._tail = table.iloc[tail]

    def _forget(self) -> None:
        self.ended += self.going.values()
        self.going, self._vcpus, self._state = {}, {}, []
        self._tail = self._words = None

    def _who(self, table: pd.DataFrame) -> np.ndarray[Any, Any]:
        import numpy as np

        columns = {name: table[name].to_numpy(dtype=np.int64, na_value=-1) for name in ("vcpu", "pid")}
        codes, first = kinds(columns)
        pairs = zip(*(column[first].tolist() for column in columns.values()), strict=True)
        numbers = [self._vcpus.setdefault(pair, len(self._vcpus)) for pair in pairs]
        given: np.ndarray[Any, Any] = np.array(numbers, dtype=np.int64)
        return np.take(given, codes)

    @property
    def _is_compiled(self) -> bool:
        return bool(self._state) and not isinstance(self._state[0], list)

    def _grow(self, compiled: bool) -> None:
        """Make room for the state of each vCPU: lists, or arrays for compiled code."""
        import numpy as np

        room = len(self._vcpus)
        have = len(self._state[0]) if self._state else 0
        widths, kinds = (8, 2, 9, 0), (np.uint64, np.int64, np.int64, np.int64)
        if not compiled and not self._is_compiled:
            self._state = self._state or [[], [], [], []]
            for rows, width in zip(self._state, widths, strict=True):
                rows.extend([0] * width if width else 0 for _ in range(room - have))
            return
        if self._is_compiled and have >= room:
            return
        grown = []
        for n, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
            array = np.zeros((2 * room, width) if width else 2 * room, dtype=kind)
            if have:
                array[:have] = np.array(self._state[n], dtype=kind)
            grown.append(array)
        self._state = grown

    def _take(
        self, words: _Both, table: pd.DataFrame, before: int, who: Any, opened: list[list[int]]
    ) -> None:
        """Note which faults belong to which storm: `opened` says where storms begin and end."""
        import numpy as np

        wanted = sorted({int(who[n]) for n, _ in opened} | set(self.going))
        if not wanted:
            return
        order = np.argsort(who, kind="stable")
        edges: Any = np.searchsorted(who[order], [[w, w + 1] for w in wanted])
        places = {w: order[start:end] for w, (start, end) in zip(wanted, edges, strict=True)}
        storms = list(self.going.values())
        begun = {w: (n, int(np.searchsorted(places[w], before))) for n, w in enumerate(self.going)}
        which = np.full(len(table), -1, dtype=np.int64)  # the number of each fault's storm
        heads: list[tuple[int, Any]] = []
        for n, cycle in opened:
            w = int(who[n])
            here = int(np.searchsorted(places[w], n))
            if not cycle:
                storm, first = begun.pop(w)
                which[places[w][first:here]] = storm
                self.ended.append(self.going.pop(w))
                continue
            first = here + 1 - max(self.least, 3 * cycle)
            begun[w] = len(storms), first
            heads.append((cycle, places[w][first : first + cycle]))
            self.going[w] = Storm(None, None, cycle, (), 0, None)
            storms.append(self.going[w])
        for w, (storm, first) in begun.items():
            which[places[w][first:]] = storm
        if heads:
            self._begin(storms[-len(heads) :], heads, words, table)
        self._extend(storms, which, words, table)
        if len(self.ended) > 2 * self.most:
            self.ended.sort(key=lambda storm: -storm.faults)
            self.dropped += len(self.ended) - self.most
            del self.ended[self.most :]

    @staticmethod
    def _begin(storms: list[Storm], heads: list[tuple[int, Any]], words: _Both, table: pd.DataFrame) -> None:
        """Note the first turns of storms."""
        import numpy as np

        places = np.concatenate([turn for _, turn in heads])
        turns = [table[name].iloc[places].tolist() for name in ("rip", "address", "raw_code")]
        private = map(_flag, words.values("private", places))
        all_ = [_Turn(*each) for each in zip(*turns, words.values("meaning", places), private, strict=True)]
        firsts = np.cumsum([0, *(cycle for cycle, _ in heads)])[:-1]
        shown = table[["vcpu", "pid", "line", "time"]].iloc[places[firsts]].itertuples(index=False)
        for storm, start, head in zip(storms, firsts.tolist(), shown, strict=True):
            storm.turn = tuple(all_[start : start + storm.cycle])
            storm.vcpu, storm.pid, storm.first_line, storm.start = head

    @staticmethod
    def _extend(storms: list[Storm], which: Any, words: _Both, table: pd.DataFrame) -> None:
        """Count the faults of storms, and how they ended."""
        import numpy as np
        import pandas as pd

        places = np.flatnonzero(which >= 0)
        mine = which[places]
        lines, times = table["line"].iloc[places].tolist(), table["time"].iloc[places].tolist()
        before = np.array([storm.faults for storm in storms], dtype=np.int64)
        cycles = np.array([storm.cycle for storm in storms], dtype=np.int64)
        turns = (before[mine] + _rank(mine)) % cycles[mine]
        counts = np.bincount(mine, minlength=len(storms)).tolist()
        last = dict(zip(mine.tolist(), range(len(mine)), strict=True))
        for n, place in last.items():
            storms[n].faults += counts[n]
            storms[n].last_line, storms[n].end = int(lines[place]), times[place]
        codes, ends = pd.factorize(np.array(words.values("outcome", places), dtype=object))
        wide = LONGEST_CYCLE * max(1, len(ends))
        pairs, faults = np.unique(mine * wide + turns * max(1, len(ends)) + codes, return_counts=True)
        for pair, count in zip(pairs.tolist(), faults.tolist(), strict=True):
            turn, end = divmod(pair % wide, len(ends))
            storms[pair // wide].ends[turn][str(ends[end])] += count
        asking = np.array([bool(_ASKING.search(str(end))) for end in ends] or [False])[codes]
        if asking.any():
            _ask(storms, mine[asking], places[asking], words, table)
        zapped = [_flag(each) or False for each in words.values("zapped", places)]
        for n in set(mine[np.array(zapped, dtype=bool)].tolist()):
            storms[n].zapped = True


def _rank(groups: Any) -> Any:
    """Say for each place the how-manieth of its group it is, from 0."""
    import numpy as np

    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return rank


def without_shared(address: int, meaning: str) -> int:
    """Give the guest-physical address (u64) of a fault: that of a TDX guest is traced with its shared bit."""
    return address & ~SHARED if "TDX guest" in meaning else address


def _ask(storms: list[Storm], mine: Any, places: Any, words: _Both, table: pd.DataFrame) -> None:
    """Count what the memory faults of storms ask for, and the conversions of their pages.

    An encrypted access that ends in KVM_EXIT_MEMORY_FAULT is an SNP guest's, and so to private memory: SEV and SEV-ES
    have no attributes that could differ.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn(), and `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.11).
    """
    import pandas as pd

    addresses = table["address"].iloc[places].astype("UInt64").fillna(0).tolist()
    meanings = words.values("meaning", places)
    gpas = [without_shared(*each) for each in zip(addresses, meanings, strict=True)]
    asked = pd.DataFrame({
        "storm": mine, "gfn": [gpa >> PAGE_SHIFT for gpa in gpas],
        **{name: words.values(name, places) for name in ("private", "declared", "conversion")},
    })  # fmt: skip
    told = table["raw_code"].iloc[places].fillna(0).to_numpy(dtype="uint64") & PFERR_GUEST_ENC_MASK != 0
    exits = ["KVM_EXIT_MEMORY_FAULT" in str(end) for end in words.values("outcome", places)]
    asked.loc[told & exits & asked["private"].isna().to_numpy(), "private"] = True
    keys = ["storm", "gfn", "private", "declared"]
    counts = asked.groupby(keys, dropna=False).size().reset_index(name="count")
    for n, gfn, *flags, count in counts.itertuples(index=False):
        private, declared = map(_flag, flags)
        storms[n].asked[Ask(int(gfn), private, declared)] += int(count)
    conversions = asked.groupby("storm")["conversion"].nunique().reset_index()
    for n, count in conversions.itertuples(index=False):
        storms[n].conversions += int(count)


def alone(row: Any) -> Storm:
    """Tell of one fault (a row of a table of `read`) as of a storm that it might become."""
    import pandas as pd

    turn = _Turn(row.rip, row.address, row.raw_code, _text(row.meaning), _flag(row.private))
    storm = Storm(row.vcpu, row.pid, 1, (turn,), row.line, row.time, row.line, row.time, 1)
    storm.ends[0][_text(row.outcome)] = 1
    if _ASKING.search(_text(row.outcome)):
        gfn = 0 if pd.isna(turn.gpa) else int(turn.gpa) >> PAGE_SHIFT
        storm.asked[Ask(gfn, _flag(row.private), _flag(row.declared))] = 1
        storm.conversions = int(not pd.isna(row.conversion))
    return storm


KEY = ("rip", "address", "raw_code", "source")
"""The columns in which the faults of a storm agree."""

_NUMBERS = ("vcpu", "pid", "line", "time", "rip", "address", "raw_code")
_TEXTS = ("meaning", "outcome")
_WORDS = (*_TEXTS, "zapped", "private", "declared", "conversion")
_ASKING = re.compile(r"KVM_EXIT_MEMORY_FAULT|to user space: error 14\Z")
"""How faults end that ask user space for a conversion, or may do so."""


def _text(value: Any) -> str:
    """Text of a table, which in one of others may be missing: then the empty one."""
    return value if isinstance(value, str) else ""


def _flag(value: Any) -> bool | None:
    """A truth value of a table; None if it is missing."""
    import pandas as pd

    return None if pd.isna(value) else bool(value)


class _Both:
    """Words of the faults that are remembered, and of the next ones behind them, without joining the two tables."""

    def __init__(self, old: pd.DataFrame | None, before: int, new: pd.DataFrame) -> None:
        self.old, self.before, self.new = old, before, new

    def values(self, name: str, places: Any) -> list[Any]:
        """Give the values at places, in their order; for text that is missing, the empty one."""
        import numpy as np

        is_new = places >= self.before
        found = np.empty(len(places), dtype=object)
        found[is_new] = self.new[name].iloc[places[is_new] - self.before]
        if self.old is not None:
            found[~is_new] = self.old[name].iloc[places[~is_new]]
        given: list[Any] = found.tolist()
        return [_text(each) for each in given] if name in _TEXTS else given

    def at(self, places: Any) -> pd.DataFrame:
        """Give the rows at places as a table."""
        import pandas as pd

        return pd.DataFrame({str(name): self.values(str(name), places) for name in self.new}, dtype=object)


def _last(who: np.ndarray[Any, Any], most: int) -> np.ndarray[Any, Any]:
    """Find the places of the last faults, at most so many, of each vCPU."""
    import numpy as np

    order = np.argsort(who, kind="stable")
    ends = np.flatnonzero(np.diff(who[order], append=-1)) + 1
    rank = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(who))
    return order[rank <= most]


def signatures(table: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Give each fault a number (u64) that is the same for those that agree in KEY."""
    import numpy as np
    import pandas as pd

    total = np.zeros(len(table), dtype=np.uint64)
    for name in KEY:
        column = table[name]
        if name == "source":
            codes, labels = pd.factorize(column)
            words = np.array([zlib.crc32(str(label).encode()) for label in labels] or [0], dtype=np.uint64)
            values, gaps = words[codes], codes < 0
        else:
            gaps = column.isna().to_numpy()
            values = column.to_numpy(dtype=np.uint64, na_value=0)
        total = (total ^ values) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
        total = (total + gaps.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        total ^= total >> np.uint64(32)
    return total
