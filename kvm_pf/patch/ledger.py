# SPDX-License-Identifier: GPL-2.0-only
"""The ledger of the patch: what its lines are and do, how they are recognised, and which patches are akin to it.

The project holds no text of the patch.  `data/ledger/` holds one row for each changed line and the digest of
its text, so that a real line is recognised and a damaged one named.  Mailers, archives and quoting change
white space; so a digest is taken of the text with white space folded.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from kvm_pf.common.paths import data_dir
from kvm_pf.common.typed import typed

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "DTYPES",
    "MERGED",
    "Posted",
    "PostedHunk",
    "Relative",
    "Span",
    "digest",
    "ledger",
    "ledger_rows",
    "posted",
    "relatives",
)

DTYPES = {
    "id": "str", "file": "str", "hunk": "int64", "sign": "str", "old_line": "Int64", "new_line": "Int64",
    "role": "str", "symbols": "str", "function": "str", "does": "str", "step": "str", "module": "str",
    "notebook": "str", "cases": "str", "claims": "str", "fate": "str", "digest": "str",
}  # fmt: skip
"""The ledger's columns, in order.  Blanks separate the items of a list; a line number not there is <NA>."""

MERGED = (21, 2)
"""Lines added and removed by the patch as merged.  Source: Linux commit `b3d5dc629c32` (v6.10)."""


class Span(NamedTuple):
    """The four numbers of an `@@` line."""

    old: int
    old_count: int
    new: int
    new_count: int

    def __str__(self) -> str:
        """Write them as the `@@` line has them."""
        return f"-{self.old},{self.old_count} +{self.new},{self.new_count}"


class Posted(NamedTuple):
    """One line of the posted patch, known by its digest.

    `id` is "" for a context line.  `step` is the change that a line of code belongs to, "" for a comment, a
    blank line or context.
    """

    id: str
    sign: str
    old: int | None
    new: int | None
    about: str
    digest: str
    step: str = ""


class PostedHunk(NamedTuple):
    """One hunk of the posted patch."""

    file: str
    span: Span
    lines: tuple[Posted, ...]


class Relative(NamedTuple):
    """A patch that is akin to this one, and what it is known by.

    `title` is the digest of its title in small letters, `messages` its Message-IDs, `commit` what Linux calls
    it, `blobs` the files before and after it as its `index` lines name them, `lines` the sign and digest of
    changed lines that the posted patch has not; `revision` is the one closest in behaviour once it is applied.
    """

    name: str
    what: str
    revision: str
    title: str
    messages: tuple[str, ...]
    commit: str
    blobs: tuple[str, ...]
    lines: tuple[str, ...]
    source: str


@typed()
def digest(text: str) -> str:
    r"""Return the first 16 hex digits of the SHA-256 of a line without its sign, white space folded.

    >>> digest("\treturn  1; ") == digest("return 1;")
    True
    """
    return hashlib.sha256(" ".join(text.split()).encode(errors="replace")).hexdigest()[:16]


@cache
def ledger_rows() -> tuple[Mapping[str, str], ...]:
    """Return the ledger as text: a row for each of the 39 changed lines, in the patch's order; columns: `DTYPES`."""
    return tuple(MappingProxyType(row) for row in _rows("ledger.csv"))


def ledger() -> pd.DataFrame:
    """Return the ledger as a table: `ledger_rows`, its numbers as numbers; columns and types: `DTYPES`."""
    import pandas as pd

    path = data_dir() / "ledger" / "ledger.csv"
    numbers = {"old_line": [""], "new_line": [""]}
    return pd.read_csv(path, dtype=DTYPES, na_values=numbers, keep_default_na=False)


@cache
def posted() -> tuple[PostedHunk, ...]:
    """Put the ledger's rows and the digests of the context together again, in the order of the patch."""
    rows: dict[tuple[str, str, int], Posted] = {}
    starts: dict[str, tuple[int, int]] = {}
    files: dict[str, str] = {}
    for row in _rows("context.csv"):
        hunk, old, new = row["hunk"], int(row["old_line"]), int(row["new_line"])
        starts.setdefault(hunk, (old, new))
        blank = "blank " if row["digest"] == digest("") else ""
        about = f"the {blank}context line (old line {old}, new line {new})"
        rows[hunk, " ", old] = Posted("", " ", old, new, about, row["digest"])
    for row in _rows("ledger.csv"):
        hunk, sign, number = row["hunk"], row["sign"], int(row["old_line"] or row["new_line"])
        files[hunk] = row["file"]
        kind = f"{row['role']}: {row['symbols']}" if row["symbols"] else row["role"]
        about = f"{row['id']} ({kind}; {'new' if sign == '+' else 'old'} line {number})"
        old_line, new_line = (None, number) if sign == "+" else (number, None)
        step = row["step"] if row["role"] == "code" else ""
        rows[hunk, sign, number] = Posted(row["id"], sign, old_line, new_line, about, row["digest"], step)

    hunks = []
    for hunk, file in files.items():
        old, new = starts[hunk]
        lines = []
        while line := rows.get((hunk, "-", old)) or rows.get((hunk, "+", new)) or rows.get((hunk, " ", old)):
            lines.append(line)
            old += line.sign != "+"
            new += line.sign != "-"
        start = starts[hunk]
        hunks.append(PostedHunk(file, Span(start[0], old - start[0], start[1], new - start[1]), tuple(lines)))
    return tuple(hunks)


@cache
def relatives() -> tuple[Relative, ...]:
    """Return the patches that are akin to this one: as merged, the other ways, the series' other patches."""
    return tuple(
        Relative(
            name=row["name"],
            what=row["what"],
            revision=row["revision"],
            title=row["title"],
            messages=tuple(row["messages"].split()),
            commit=row["commit"],
            blobs=tuple(row["blobs"].split()),
            lines=tuple(row["lines"].split()),
            source=row["source"],
        )
        for row in _rows("relatives.csv")
    )


def _rows(name: str) -> list[dict[str, str]]:
    with (data_dir() / "ledger" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
