# SPDX-License-Identifier: GPL-2.0-only
"""What a trace amounts to, counted table by table in bounded memory, however long it is.

A Digest takes tables of faults one after another, as `kvm_pf.trace.chunks` gives them, and holds only what is told of
them: counts by code, by outcome and by page, the storms, and the first examples of whatever is worth a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from kvm_pf.bits import PFERR_GUEST_ENC_MASK, PFERR_GUEST_RMP_MASK, PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK
from kvm_pf.trace.faults import kinds, table
from kvm_pf.trace.follows import Model, compared
from kvm_pf.trace.release import DEFAULT, ReadAs, asked_for
from kvm_pf.trace.storms import Finder, Storm
from kvm_pf.trace.stuck import rivals, stuck_on, verdict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MOST_PAGES = 1 << 19
"""Pages that are counted one by one; if there are more, those with the fewest faults are dropped and said to be."""

MOST_CODES = 1 << 14
"""Different codes that are counted one by one, likewise."""

SHOWN = 1000
"""Rows of a list that are kept; the others are counted."""


class Kept:
    """The first rows of a kind, and how many there are: `rows`, a table, and `count`."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.rows: pd.DataFrame | None = None

    def take(self, f: pd.DataFrame, chosen: np.ndarray[Any, Any]) -> None:
        """Take the rows of a table that are chosen."""
        if places := chosen.nonzero()[0].tolist():
            self.add(f.iloc[places[: self.most]])
            self.count += max(0, len(places) - self.most)

    def add(self, rows: pd.DataFrame) -> None:
        """Take more rows of the kind."""
        import pandas as pd

        self.count += len(rows)
        room = self.most - (0 if self.rows is None else len(self.rows))
        if len(rows) and room > 0:
            head = rows.head(room)
            self.rows = head if self.rows is None else pd.concat([self.rows, head], ignore_index=True)

    def absorb(self, other: Kept) -> None:
        """Take what another has kept."""
        count = self.count + other.count
        if other.rows is not None:
            self.add(other.rows)
        self.count = count

    def __iter__(self) -> Any:
        return iter(()) if self.rows is None else self.rows.itertuples(index=False)


_CAUGHT = 1 << 31
"""The valid bit of IDT-vectoring information.  Source: Intel SDM vol. 3, section 25.9.3."""

LONG = 0.1
"""From so many seconds on, a fault that took that long is told of."""


def _has(codes: Any, mask: int) -> Any:
    """Say which of a column's codes have a bit of a mask; gaps have none."""
    return codes.fillna(0) & mask != 0


WORTH: dict[str, tuple[int, Callable[[pd.DataFrame], Any]]] = {
    "first MMIO by EPT": (1, lambda f: f["mmio"] & (f["encoding"] == "ept") & ~f["mapped"].fillna(True)),
    "local APIC": (1, lambda f: f["gfn"] == 0xFEE00),
    "I/O APIC": (1, lambda f: f["gfn"] == 0xFEC00),
    "HPET": (1, lambda f: f["gfn"] == 0xFED00),
    "vectoring": (1, lambda f: (f["vectoring"].fillna(0) & _CAUGHT) != 0),
    "not emulated": (3, lambda f: f["outcome"].str.startswith("emulation failed")),
    "the guest's own": (1, lambda f: f["outcome"] == "#PF injected"),
    "memory fault": (1, lambda f: f["encoding"] == "memfault"),
    "EFAULT": (1, lambda f: f["outcome"] == "to user space: error 14"),
    "failed": (3, lambda f: f["outcome"].str.contains(r"^to user space: (?:error \d|KVM_EXIT_MEMORY_FAULT)")),
    "pending": (3, lambda f: f["source"] == "pending"),
    "RSVD": (1, lambda f: (f["source"] == "guest_pf") & _has(f["raw_code"], PFERR_RSVD_MASK)),
    "RMP": (1, lambda f: (f["source"] == "guest_pf") & _has(f["raw_code"], PFERR_GUEST_RMP_MASK)),
    "bit 49": (
        1,
        lambda f: (
            _has(f["raw_code"], PFERR_PRIVATE_ACCESS)
            & f["exit_code"].notna()
            & ~_has(f["exit_code"], PFERR_PRIVATE_ACCESS)
        ),
    ),
    "TDX": (1, lambda f: f["encoding"] == "tdx"),
    "long": (3, lambda f: f["took"].fillna(0) >= LONG),
}
"""What is worth a note: how many examples are kept, and which faults of a table they are."""


class Digest:
    """Counts of a trace's faults; `add` takes the next table, the methods tell what all of them amount to.

    `read_as` is the revision that the faults are compared with from here on, `revisions` names all that were; `events`
    counts the trace's events by name (None: nobody knows).
    """

    def __init__(self, least: int = 5) -> None:
        self.rows = self.nested = self.cut = 0
        self.vcpus: set[int] = set()
        self.sources: Counter[str] = Counter()
        self.encodings: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.bare: Counter[str] = Counter()  # outcomes of the kernel's own faults
        self.split: Counter[str] = Counter()
        self.has_whole = False
        self.worth = {name: Kept(most) for name, (most, _) in WORTH.items()}
        self.finder = Finder(least)
        self.read_as = asked_for(DEFAULT)
        self.model = Model(self.read_as.revision)
        self.revisions: dict[str, None] = {}
        self.events: Counter[str] | None = None
        self.disagreeing = Kept(SHOWN)
        self._ends: dict[tuple[Any, ...], list[int]] = {}
        self.dropped_ends = 0
        self.dropped_pages = self.dropped_codes = 0
        self._codes: list[pd.DataFrame] = []
        self._pages: list[pd.DataFrame] = []
        self._waiting = 0
        self._numbers: dict[int, int] = {}

    def take(self, read_as: ReadAs) -> None:
        """Compare the tables that follow with another revision."""
        self.read_as = read_as
        if read_as.revision is not self.model.revision:
            self.model = Model(read_as.revision)

    def add(self, f: pd.DataFrame) -> Digest:
        """Take the next table, with the columns of `kvm_pf.trace.read`; return the digest itself."""
        if not len(f):
            return self
        self.revisions[self.read_as.revision.name] = None
        self.rows += len(f)
        self.nested += int(f["nested"].sum())
        self.cut += int(f["cut"].sum())
        self.vcpus.update(f["vcpu"].dropna().unique().tolist())
        self._count(self.sources, f["source"])
        self._count(self.encodings, f["encoding"])
        self._count(self.outcomes, f["outcome"])
        self._count(self.bare, f.loc[~f["source"].isin(["memory_fault", "guest_pf", "hvf"]), "outcome"])
        kernel = f["source"].eq("") & f["raw_code"].notna() & f["vcpu"].notna()
        self.has_whole = self.has_whole or bool(kernel.any())
        for name in ("private", "declared"):
            values = f[name]
            self.split[f"{name}: yes"] += int(values.sum())
            self.split[f"{name}: no"] += int((~values).sum())
        encrypted = f["encoding"].eq("npf") & _has(f["raw_code"], PFERR_GUEST_ENC_MASK)
        never = int((encrypted & ~f["private"]).sum())
        self.split["encrypted"] += never
        self.split["private: no"] -= never
        self.split["undecided"] += int((encrypted & f["private"].isna()).sum())
        self.split["MMIO"] += int(f["mmio"].sum())
        for name, (_, chosen) in WORTH.items():
            self.worth[name].take(f, chosen(f).to_numpy(dtype=bool, na_value=False))
        self.count_codes(f)
        self.count_pages(f)
        self.finder.add(f)
        self._follow(f)
        return self

    def _follow(self, f: pd.DataFrame) -> None:
        """Count what followed, beside what should have."""
        import numpy as np

        codes, first, said = compared(f, self.model)
        counts = np.bincount(codes, minlength=len(first))
        again = np.bincount(
            codes, weights=f["again"].to_numpy(dtype=np.int64, na_value=0) > 0, minlength=len(first)
        )
        lines = f["line"].to_numpy(dtype=np.int64)[first]
        heads = f[["meaning"]].iloc[first]
        for n, head in enumerate(heads.itertuples(index=False)):
            answer = said[n]
            if answer["expected"] is None and answer["agrees"] is None:
                continue
            key = (head.meaning, answer["expected"], answer["seen"], answer["agrees"], answer["not_in_trace"])
            if key not in self._ends and len(self._ends) >= MOST_CODES:
                self.dropped_ends += int(counts[n])
                continue
            entry = self._ends.setdefault(key, [0, 0, int(lines[n])])
            entry[0] += int(counts[n])
            entry[1] += int(again[n])
        wrong = np.array([answer["agrees"] is False for answer in said], dtype=bool)[codes]
        if wrong.any():
            words = [said[n]["what"] for n in codes[wrong]]
            self.disagreeing.add(f.loc[wrong, ["line", "address"]].assign(what=words))

    def count_codes(self, f: pd.DataFrame) -> None:
        """Count the faults of the next table by code, and nothing else."""
        self._codes.append(_codes(f))
        if len(self._codes) > 64:
            self._settle()

    def count_pages(self, f: pd.DataFrame) -> None:
        """Count the faults of the next table by page, and nothing else."""
        self._pages.append(self._by_page(f))
        self._waiting += len(self._pages[-1])
        if self._waiting > MOST_PAGES:
            self._settle()

    @staticmethod
    def _count(counter: Counter[str], column: pd.Series[Any]) -> None:
        counts: Any = column.value_counts().items()
        counter.update({str(name): int(n) for name, n in counts if n})

    def _by_page(self, f: pd.DataFrame) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        known = f[f["gfn"].notna()]
        codes, uniques = pd.factorize(known["raw_code"])
        if len(self._numbers) < 64:
            for code in uniques:
                self._numbers.setdefault(int(code), len(self._numbers))
        bits = [min(63, self._numbers.get(int(code), 63)) for code in uniques]
        masks = np.array([1 << bit for bit in bits] or [0], dtype=np.uint64)
        mask = np.where(codes < 0, np.uint64(0), masks[codes])
        return _pages(
            pd.DataFrame({
                "gfn": known["gfn"].to_numpy(dtype=np.uint64), "faults": np.int64(1), "mask": mask,
                "mmio": known["mmio"].to_numpy(dtype=bool, na_value=False),
                "first": known["time"].to_numpy(dtype=float, na_value=np.nan),
                "last": known["time"].to_numpy(dtype=float, na_value=np.nan),
            })
        )  # fmt: skip

    def absorb(self, other: Digest) -> None:
        """Add what another trace amounts to; its pages and storms are left to it."""
        self.revisions |= other.revisions
        self.rows += other.rows
        self.nested += other.nested
        self.cut += other.cut
        self.vcpus |= other.vcpus
        for mine, theirs in (
            (self.sources, other.sources), (self.encodings, other.encodings), (self.outcomes, other.outcomes),
            (self.bare, other.bare), (self.split, other.split),
        ):  # fmt: skip
            mine.update(theirs)
        self.has_whole = self.has_whole or other.has_whole
        for name, kept in self.worth.items():
            kept.absorb(other.worth[name])
        self.disagreeing.absorb(other.disagreeing)
        other._settle()
        self._codes += other._codes
        self.dropped_codes += other.dropped_codes
        for key, (faults, again, line) in other._ends.items():
            entry = self._ends.setdefault(key, [0, 0, line])
            entry[0] += faults
            entry[1] += again
        self._settle()

    def _settle(self) -> None:
        """Add up the tables that wait to be, and drop what there is no room for."""
        import pandas as pd

        if len(self._codes) > 1:
            codes, dropped = _kept(_summed(pd.concat(self._codes, ignore_index=True)), MOST_CODES)
            self._codes, self.dropped_codes = [codes], self.dropped_codes + dropped
        if len(self._pages) > 1:
            pages, dropped = _kept(_pages(pd.concat(self._pages, ignore_index=True)), MOST_PAGES)
            self._pages, self.dropped_pages = [pages], self.dropped_pages + dropped
        self._waiting = 0

    # --- what it amounts to ---

    def meanings(self) -> pd.DataFrame:
        """Count the faults by `encoding`, `raw_code`, `error_code` and `meaning`: `faults`, the most first."""
        self._settle()
        if not self._codes:
            return table({name: [] for name in _CODE}, _CODE)
        found = self._codes[0].sort_values("faults", ascending=False, kind="stable")
        return _of_kinds(found, _CODE)

    def pages(self, most: int = 10) -> pd.DataFrame:
        """List the pages with the most faults: `gfn`, `faults`, `codes`, `mmio`, `first`, `last` (s).

        `codes` says how many different codes, up to 63.  If pages were dropped, `attrs["dropped"]` says of how many
        faults at most each; a page of the list can have that many more than is said.
        """
        import numpy as np

        self._settle()
        dtypes = {
            "gfn": "UInt64", "faults": "Int64", "codes": "Int64", "mmio": "boolean", "first": "Float64",
            "last": "Float64",
        }  # fmt: skip
        if not self._pages:
            return table({name: [] for name in dtypes}, dtypes)
        found = self._pages[0].sort_values("faults", ascending=False, kind="stable").head(most)
        found = found.assign(codes=np.bitwise_count(found["mask"].to_numpy()))
        shown = _of_kinds(found, dtypes)
        shown.attrs["dropped"] = self.dropped_pages
        return shown

    def follows(self) -> pd.DataFrame:
        """Count what followed by what should have: the disagreements first, then what came again most often.

        Columns: `faults`; `again`, how many of them were the very same fault as the one before; `first_line`;
        `meaning`; `expected`, `seen`, `agrees`, `not_in_trace` as in `kvm_pf.trace.follows`.
        """
        dtypes = {
            "faults": "Int64", "again": "Int64", "first_line": "Int64", "meaning": "string", "expected": "string",
            "seen": "string", "agrees": "boolean", "not_in_trace": "string",
        }  # fmt: skip
        rows = [
            (*counts, meaning, expected, seen, agrees, inputs)
            for (meaning, expected, seen, agrees, inputs), counts in self._ends.items()
        ]
        rows.sort(key=lambda row: (row[6] is not False, -row[1], -row[0], row[2]))
        return table({name: [row[n] for row in rows] for n, name in enumerate(dtypes)}, dtypes)

    def storms(self) -> pd.DataFrame:
        """List the storms, the longest first; the columns are those of `kvm_pf.trace.storms`."""
        return storm_table(self.finder.found, together=True, seen=self.events)


_STORM = {
    "vcpu": "Int64", "pid": "Int64", "faults": "Int64", "cycle": "Int64", "first_line": "Int64",
    "last_line": "Int64", "start": "Float64", "span": "Float64", "rate": "Float64", "rip": "UInt64",
    "address": "UInt64", "raw_code": "UInt64", "why": "string", "stuck_on": "string",
}  # fmt: skip


def storm_table(
    storms: Iterable[Storm], together: bool = False, seen: Collection[str] | None = None
) -> pd.DataFrame:
    """Make a table of storms: a row each, with what the guest is stuck on in words.

    `together` says that they are of one trace, so that what other vCPUs do meanwhile counts; `seen` names the events
    that this has, if that is known.
    """
    import pandas as pd

    rows, storms = [], list(storms)
    for storm, rival in zip(storms, rivals(storms) if together else [None] * len(storms), strict=True):
        first = storm.turn[0]
        span = storm.end - storm.start  # NA without times
        has_span = not pd.isna(span) and span > 0
        rows.append({
            "vcpu": storm.vcpu, "pid": storm.pid, "faults": storm.faults, "cycle": storm.cycle,
            "first_line": storm.first_line, "last_line": storm.last_line, "start": storm.start, "span": span,
            "rate": (storm.faults - 1) / span if has_span else None, "rip": first.rip, "address": first.address,
            "raw_code": first.raw_code, "why": verdict(storm, rival, seen), "stuck_on": stuck_on(storm),
        })  # fmt: skip
    return table({name: [row[name] for row in rows] for name in _STORM}, _STORM)


_CODE = {
    "encoding": "string",
    "raw_code": "UInt64",
    "error_code": "UInt64",
    "meaning": "string",
    "faults": "Int64",
}


def _of_kinds(frame: pd.DataFrame, dtypes: dict[str, Any]) -> pd.DataFrame:
    """Choose columns, each of its dtype."""
    return frame[list(dtypes)].astype(dtypes).reset_index(drop=True)


def _codes(f: pd.DataFrame) -> pd.DataFrame:
    import numpy as np

    by = [name for name in _CODE if name != "faults"]
    codes, first = kinds({name: f[name].array for name in by})
    return f[by].iloc[first].assign(faults=np.bincount(codes, minlength=len(first)))


def _summed(parts: pd.DataFrame) -> pd.DataFrame:
    import numpy as np

    by = [name for name in _CODE if name != "faults"]
    codes, first = kinds({name: parts[name].array for name in by})
    faults = np.bincount(codes, weights=parts["faults"], minlength=len(first)).astype(np.int64)
    return parts[by].iloc[first].assign(faults=faults).reset_index(drop=True)


_ADD_UP = {"faults": "add", "mask": "bitwise_or", "mmio": "logical_or", "first": "fmin", "last": "fmax"}


def _pages(parts: pd.DataFrame) -> pd.DataFrame:
    """Add up the rows of each page, in the order of their numbers."""
    import numpy as np
    import pandas as pd

    if not len(parts):
        return parts
    order = np.argsort(parts["gfn"].to_numpy(), kind="stable")
    gfns = parts["gfn"].to_numpy()[order]
    starts = np.flatnonzero(np.concatenate(([True], gfns[1:] != gfns[:-1])))
    added = {
        name: getattr(np, how).reduceat(parts[name].to_numpy()[order], starts)
        for name, how in _ADD_UP.items()
    }
    return pd.DataFrame({"gfn": gfns[starts], **added})


def _kept(counts: pd.DataFrame, most: int) -> tuple[pd.DataFrame, int]:
    """Keep the rows with the most faults; say how many faults each of the others has at most."""
    if len(counts) <= most:
        return counts, 0
    order = counts["faults"].sort_values(ascending=False, kind="stable").index
    return counts.loc[order[:most].sort_values()], int(counts["faults"].loc[order[most]])
