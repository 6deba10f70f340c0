# SPDX-License-Identifier: GPL-2.0-only
"""The patch itself: its ledger, a reader for the copies people have of it, and a verdict on each.

The project holds no text of the patch.  `data/ledger/` holds one row for each changed line and the digest of
its text, so that a real line is recognised and a damaged one named.  Mailers, archives and quoting change
white space; so a digest is taken of the text with white space folded.
"""

from __future__ import annotations

import codecs
import csv
import email
import gzip
import hashlib
import html
import importlib
import re
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.revisions import path_modules

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "DTYPES",
    "Difference",
    "Hunk",
    "Line",
    "Patch",
    "Span",
    "Touched",
    "Verdict",
    "digest",
    "identify",
    "ledger",
    "read_patch",
    "report",
    "steps_of",
)

DTYPES = {
    "id": "str", "file": "str", "hunk": "int64", "sign": "str", "old_line": "Int64", "new_line": "Int64",
    "role": "str", "symbols": "str", "function": "str", "does": "str", "step": "str", "module": "str",
    "notebook": "str", "cases": "str", "claims": "str", "fate": "str", "digest": "str",
}  # fmt: skip
"""The ledger's columns, in order.  Blanks separate the items of a list; a line number not there is <NA>."""

PARTS = {
    "kvm_mmu_page_fault": {
        "sanitize": "PFERR_SYNTHETIC_MASK|PFERR_IMPLICIT_ACCESS",
        "root_is_valid": "VALID_PAGE",
        "mark_private": "PFERR_PRIVATE_ACCESS|SW_PROTECTED|kvm_mem_is_private",
        "reserved_fault": "handle_mmio_page_fault",
    }
}
"""The one kernel function that became several steps, all in `entry`, and the names by which each is told."""

MERGED = (21, 2)
"""Lines added and removed by the patch as merged.  Source: Linux commit `b3d5dc629c32` (v6.10)."""


SHOWN = 5
"""How many of the lines that no ledger row knows a report shows."""


class Span(NamedTuple):
    """The four numbers of an `@@` line."""

    old: int
    old_count: int
    new: int
    new_count: int

    def __str__(self) -> str:
        """Write them as the `@@` line has them."""
        return f"-{self.old},{self.old_count} +{self.new},{self.new_count}"


class Line(NamedTuple):
    """One line of a hunk: its sign ("+", "-" or " "), its old and new line number, its text."""

    sign: str
    old: int | None
    new: int | None
    text: str


class Hunk(NamedTuple):
    """One hunk: its file, the numbers of its `@@` line and what stands behind them, its lines."""

    file: str
    span: Span
    section: str
    lines: tuple[Line, ...]

    @property
    def complete(self) -> bool:
        """Say whether it has as many lines as its `@@` line promises."""
        old = sum(line.sign != "+" for line in self.lines)
        new = sum(line.sign != "-" for line in self.lines)
        return (old, new) == (self.span.old_count, self.span.new_count)

    @property
    def changed(self) -> list[Line]:
        """The added and removed lines."""
        return [line for line in self.lines if line.sign != " "]


class Patch(NamedTuple):
    """A patch as it was found; what was not found is "".

    `source` is the file's name, `quoted` the number of ">" before each line.  `author` wrote the patch,
    `sender` the reply that quotes it; `date` and `message_id` are those of the mail or commit.
    """

    source: str
    subject: str
    version: str
    part: str
    author: str
    sender: str
    date: str
    message_id: str
    quoted: int
    hunks: tuple[Hunk, ...]

    @property
    def files(self) -> list[str]:
        """The files it changes, in its order, each once."""
        return list(dict.fromkeys(hunk.file for hunk in self.hunks))

    @property
    def counts(self) -> tuple[int, int]:
        """The number of lines added and of lines removed."""
        signs = [line.sign for hunk in self.hunks for line in hunk.lines]
        return signs.count("+"), signs.count("-")


class Difference(NamedTuple):
    """Where a copy departs from the posted patch.

    `line` counts the lines of the hunk from 1; 0 is the `@@` line, or the hunk as a whole.  `expected` and
    `found` say what should stand there and what does; `ledger_id` is "" where no changed line is expected.
    """

    file: str
    hunk: int
    line: int
    expected: str
    found: str
    ledger_id: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        place = f"{self.file}, hunk {self.hunk}" + (f", line {self.line} of it" if self.line else "")
        return f"{place}: expected {self.expected}; found {self.found}"


class Touched(NamedTuple):
    """What one hunk touches: functions of the kernel, and the steps of the model that stand for them."""

    hunk: int
    file: str
    functions: tuple[str, ...]
    steps: tuple[str, ...]


class Verdict(NamedTuple):
    """What a patch is.

    `differences` is empty for "this patch"; else the first one comes first.  `present` are the ids of the
    ledger rows that the patch contains, `unmatched` its changed lines that no row knows.
    """

    kind: Literal["this patch", "a damaged copy", "another patch"]
    differences: tuple[Difference, ...]
    present: tuple[str, ...]
    unmatched: tuple[Line, ...]
    touched: tuple[Touched, ...]
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ ledger


class Posted(NamedTuple):
    """One line of the posted patch, known by its digest; `id` is "" for a context line."""

    id: str
    sign: str
    old: int | None
    new: int | None
    about: str
    digest: str


class PostedHunk(NamedTuple):
    """One hunk of the posted patch."""

    file: str
    span: Span
    lines: tuple[Posted, ...]


def digest(text: str) -> str:
    r"""Return the first 16 hex digits of the SHA-256 of a line without its sign, white space folded.

    >>> digest("\treturn  1; ") == digest("return 1;")
    True
    """
    return hashlib.sha256(" ".join(text.split()).encode(errors="replace")).hexdigest()[:16]


def ledger() -> pd.DataFrame:
    """Return the ledger: a row for each of the 39 changed lines, in the patch's order; columns: `DTYPES`."""
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
        rows[hunk, sign, number] = Posted(row["id"], sign, old_line, new_line, about, row["digest"])

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


def _rows(name: str) -> list[dict[str, str]]:
    with (data_dir() / "ledger" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------ reader

_QUOTE = r"^(?P<quote>[> \t]*)"
_NUMBERS = r"-(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))?"
_HUNK = re.compile(rf"{_QUOTE}@@ {_NUMBERS} @@ ?(?P<section>.*)$", re.MULTILINE)
_FILE = re.compile(rf"{_QUOTE}(?:diff --git \S+ |(?:---|\+\+\+) )(?:[ab]/)?(?!/dev/null)(\S+)")
_DIFF = re.compile(rf"{_QUOTE}(?:diff --git |--- \S.*\n[> \t]*\+\+\+ \S|@@ -\d)", re.MULTILINE)
_TAGGED = re.compile(rf"{_QUOTE}(?:subject: *)?((?:(?:re|fwd?): *)*\[[^]\n]*patch[^]\n]*\].*)$", re.M | re.I)
_TITLE = re.compile(r"^(?P<quote>)(?:Subject: *| {4})(\S.*)$", re.MULTILINE)

_MAIL = re.compile(rb"(?:From .*\n)?(?:[!-9;-~]+:.*\n(?:[ \t].*\n)*)+\n")
_MBOX = re.compile(rb"^(?=From \S+ .*\d\d:\d\d:\d\d)", re.MULTILINE)
_COMMIT = re.compile(r"^(?=commit [0-9a-f]{40}\b)", re.MULTILINE)
_WEB = re.compile(r"\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE)


def read_patch(source: str | bytes | Path) -> Patch:
    """Read a patch wherever it stands.

    That may be a mail, a mailbox, a page of a web archive or its text, a reply that quotes the patch, the
    output of `git format-patch` or `git show`, a plain diff.  `source` is a path, or the content itself:
    bytes, or text of more than one line.  Base64, quoted-printable, CRLF, UTF-16 and gzip are undone.  Of
    several messages or commits the one most like the posted patch is taken, else the first with a diff.

    Raises InputError, naming the file and why, if it cannot be read or holds no diff.
    """
    name, raw = _load(source)
    found = [patch for text in _texts(raw, name) if (patch := _parse(text, name)).hunks]
    if not found:
        raise InputError(f"{name}: holds no diff; a patch has lines such as @@ -267,7 +267,18 @@")
    return max(found, key=lambda patch: _likeness(identify(patch)))


def _likeness(verdict: Verdict) -> tuple[int, int]:
    return ("another patch", "a damaged copy", "this patch").index(verdict.kind), len(verdict.present)


def _load(source: str | bytes | Path) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the patch", source
    if isinstance(source, str) and "\n" in source:
        return "the patch", source.encode(errors="replace")
    try:
        return str(source), Path(source).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source}: cannot be read: {why}") from None


def _texts(raw: bytes, name: str) -> Iterator[str]:
    """Undo the packing and yield the text of each message or commit."""
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{name}: cannot be unpacked: {error}") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raw = raw.decode("utf-16", errors="replace").encode(errors="replace")
    raw = raw.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    if not raw.strip():
        raise InputError(f"{name}: is empty; a patch was expected")
    if (offset := raw.find(b"\0")) >= 0:
        raise InputError(f"{name}: is binary (a NUL byte at offset {offset}); a patch is text")
    if _MAIL.match(raw):
        for message in filter(None, _MBOX.split(raw)):
            yield _mail(email.message_from_bytes(message))
        return
    text = raw.decode(errors="replace")
    if _WEB.match(text):
        text = html.unescape(re.sub(r"<[^<>]*>", "", text))
    yield from filter(None, _COMMIT.split(text))


def _mail(message: Message) -> str:
    """Turn a message into plain text: the headers that matter, then the parts that may hold a patch."""
    fields = [field for field in ("Subject", "Re", "From", "Date", "Message-ID") if message[field]]
    lines = [f"{field}: {_header(message[field])}" for field in fields]
    for part in message.walk():
        text = part.get_content_maintype() == "text" and part.get_content_subtype() != "html"
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes) and (text or (part.get_filename() or "").endswith((".patch", ".diff"))):
            lines += ["", _decode(payload, part.get_content_charset("utf-8")).replace("\r\n", "\n")]
    return "\n".join(lines)


def _header(value: object) -> str:
    with suppress(HeaderParseError, LookupError, ValueError):
        value = make_header(decode_header(str(value)))
    return " ".join(str(value).split())


def _decode(payload: bytes, charset: str) -> str:
    try:
        return payload.decode(charset, errors="replace")
    except (LookupError, ValueError):
        return payload.decode(errors="replace")


def _parse(text: str, name: str) -> Patch:
    first = _HUNK.search(text)
    depth = first["quote"].count(">") if first else 0
    diff = _DIFF.search(text)
    head = text[: diff.start()] if diff else text
    title = _TAGGED.search(head) or _TITLE.search(head)
    subject = title[2].strip() if title else ""
    tag = re.search(r"\[([^]]*patch[^]]*)\]", subject, re.IGNORECASE)
    version = re.search(r"\bv\d+\b", tag[1], re.IGNORECASE) if tag else None
    part = re.search(r"\b\d+/\d+\b", tag[1]) if tag else None
    return Patch(
        source=name,
        subject=subject,
        version=version[0].lower() if version else "v1" if tag else "",
        part=part[0] if part else "",
        author=_author(head, depth),
        sender=_field(head, "From", 0) if depth else "",
        date=_field(head, "(?:Author)?Date", 0),
        message_id=_field(head, "Message-ID", 0),
        quoted=depth,
        hunks=_by_library(text) or _by_counts(text),
    )


def _level(depth: int) -> str:
    """Return the pattern that begins a line quoted `depth` times."""
    return rf"^[ \t]*(?:>[ \t]*){{{depth}}}"


def _field(head: str, name: str, depth: int, which: int = 0) -> str:
    values = re.findall(rf"{_level(depth)}{name}:[ \t]+(\S.*)", head, re.MULTILINE | re.IGNORECASE)
    return str(values[which]).rstrip() if values else ""


def _author(head: str, depth: int) -> str:
    """Name the writer: from a From or Author line, the reply's "On …, NAME wrote:", or the first sign-off."""
    if author := _field(head, "(?:From|Author)", depth, which=-1):
        return author
    wrote = re.search(rf"{_level(max(depth - 1, 0))}On .*,[ \t]*([^,\n]+?)[ \t]+wrote:", head, re.MULTILINE)
    return wrote[1] if wrote else _field(head, "Signed-off-by", depth)


def _by_library(text: str) -> tuple[Hunk, ...]:
    """Read a well-formed diff; return nothing where the library finds nothing or stumbles."""
    from unidiff.errors import UnidiffParseError
    from unidiff.patch import PatchSet

    try:
        files = PatchSet(text)
    except (UnidiffParseError, ValueError):
        return ()
    return tuple(
        Hunk(
            file.path,
            Span(hunk.source_start, hunk.source_length, hunk.target_start, hunk.target_length),
            hunk.section_header,
            tuple(
                Line(line.line_type, line.source_line_no, line.target_line_no, line.value.removesuffix("\n"))
                for line in hunk
                if line.line_type in ("+", "-", " ")
            ),
        )
        for file in files
        for hunk in file
    )


def _by_counts(text: str) -> tuple[Hunk, ...]:
    """Walk through a quoted or damaged diff: each `@@` line says how many lines to take."""
    lines = text.removesuffix("\n").split("\n")
    hunks = []
    file = ""
    at = 0
    while at < len(lines):
        if name := _FILE.match(lines[at]):
            file = name[2]
        header = _HUNK.match(lines[at])
        at += 1
        if header:
            old, new = int(header[2]), int(header[4])
            span = Span(old, int(header[3] or 1), new, int(header[5] or 1))
            taken, at = _take(lines, at, header["quote"], span)
            hunks.append(Hunk(file, span, header["section"], taken))
    return tuple(hunks)


def _take(lines: list[str], at: int, quote: str, span: Span) -> tuple[tuple[Line, ...], int]:
    """Take the lines of one hunk from `at` on, until the counts are used up or the next file or hunk begins.

    A line without a sign is context, its leading blank lost.  A line quoted less deeply than the `@@` line
    is the replier's own and is passed over.  Returns the lines and where the walk ended.
    """
    indent = len(quote) - len(quote.rstrip(" \t"))
    margin = re.compile(rf"(?:[ \t]*>){{{quote.count('>')}}}[ \t]{{0,{indent}}}")
    old, new = span.old, span.new
    old_end, new_end = old + span.old_count, new + span.new_count
    taken: list[Line] = []
    while at < len(lines) and (old < old_end or new < new_end):
        if _DIFF.match("\n".join(lines[at : at + 2])):
            break
        inside = margin.match(lines[at])
        text = lines[at][inside.end() :] if inside else "\\"
        at += 1
        if text.startswith("\\"):
            continue
        sign = text[0] if text[:1] in ("+", "-") else " "
        if (sign != "+" and old == old_end) or (sign != "-" and new == new_end):
            break
        line = Line(sign, old if sign != "+" else None, new if sign != "-" else None, text.removeprefix(sign))
        taken.append(line)
        old += sign != "+"
        new += sign != "-"
    return tuple(taken), at


# ------------------------------------------------------------------------------------------------ verdict


def identify(patch: Patch) -> Verdict:
    """Say whether `patch` is the posted patch, a damaged copy of it, or another patch; and what it touches.

    Line numbers may have moved; every line of every hunk must be there, in order.  A copy is damaged if at
    least half of its changed lines are the posted patch's own (braces, blank lines and the like not counted);
    the merged form is another patch, though most of its lines are the same.
    """
    differences = _differences(patch)
    present, unmatched = _match(patch)
    merged = patch.counts == MERGED and {"h1+10", "h2+18", "h3+01"} <= set(present)
    told = sum(_tells(line) for hunk in patch.hunks for line in hunk.changed)
    known = told - sum(_tells(line) for line in unmatched)
    notes = [
        f"hunk {number} stands at {have.span}, posted at {want.span}"
        for number, (want, have) in enumerate(zip(posted(), patch.hunks, strict=False), 1)
        if not differences and want.span != have.span
    ]
    kind: Literal["this patch", "a damaged copy", "another patch"] = "this patch"
    if merged:
        kind = "another patch"
        notes.append("this is the form in which the patch was merged (Linux commit b3d5dc629c32, v6.10)")
    elif differences:
        kind = "a damaged copy" if 2 * known >= max(told, 1) else "another patch"
    notes += [f"hunk {n} is cut short" for n, hunk in enumerate(patch.hunks, 1) if not hunk.complete]
    touched = tuple(_touch(number, hunk) for number, hunk in enumerate(patch.hunks, 1))
    return Verdict(kind, differences, present, unmatched, touched, tuple(notes))


def _tells(line: Line) -> bool:
    return re.search(r"\w", line.text) is not None


def _match(patch: Patch) -> tuple[tuple[str, ...], tuple[Line, ...]]:
    """Return the ids of the ledger rows in `patch`, in the ledger's order, and the lines no row knows."""
    changed = [(hunk.file, line) for hunk in patch.hunks for line in hunk.changed]
    present: list[str] = []
    known: set[tuple[str, Line]] = set()
    for want in posted():
        rows = [row for row in want.lines if row.id]
        here = [(file, line) for file, line in changed if file == want.file]
        wanted = [(row.sign, row.digest) for row in rows]
        given = [(line.sign, digest(line.text)) for _, line in here]
        for a, b, size in SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks():
            present += [row.id for row in rows[a : a + size]]
            known.update(here[b : b + size])
    return tuple(present), tuple(line for file, line in changed if (file, line) not in known)


def _differences(patch: Patch) -> tuple[Difference, ...]:
    """Compare hunk by hunk; say what differs in the first hunk that does: its place, counts, lines."""
    for number, (want, have) in enumerate(zip_longest(posted(), patch.hunks), 1):
        if want is None:
            return (Difference(have.file, number, 0, "the end of the patch", f"one more hunk, {have.span}"),)
        if have is None or have.file != want.file:
            found = f"a hunk of {have.file or 'no named file'}" if have else "the end of the patch"
            why = "the hunks are out of order" if want.file in patch.files else "this one is missing"
            return (Difference(want.file, number, 0, str(want.span), f"{found}: {why}"),)
        found_here = []
        if want.span[1::2] != have.span[1::2]:
            found_here.append(Difference(want.file, number, 0, f"the counts of {want.span}", str(have.span)))
        if line := _first_line(number, want, have):
            found_here.append(line)
        if found_here:
            return tuple(found_here)
    return ()


def _first_line(number: int, want: PostedHunk, have: Hunk) -> Difference | None:
    """Return the first line of a hunk that differs."""
    wanted: list[tuple[str, str]] = [(row.sign, row.digest) for row in want.lines]
    given = [(line.sign, digest(line.text)) for line in have.lines]
    at = next((i for i, (a, b) in enumerate(zip_longest(wanted, given)) if a != b), None)
    if at is None:
        return None
    expected, ledger_id = "the end of the hunk", ""
    if at < len(wanted):
        expected, ledger_id = want.lines[at].about, want.lines[at].id
    found = "the end of the hunk"
    if at < len(given):
        found = repr(_quote(have.lines[at]))
        missing = wanted[at + 1 : at + 2] == [given[at]]
        extra = given[at + 1 : at + 2] == wanted[at : at + 1]
        if missing != extra:
            found += ": a line is missing" if missing else ": a line too many"
    return Difference(want.file, number, at + 1, expected, found, ledger_id)


@cache
def steps_of(name: str) -> tuple[str, ...]:
    """Return the steps of the model, as "module.function", that stand for the kernel function `name`.

    >>> steps_of("handle_mmio_page_fault")
    ('mmio.handle_mmio_page_fault',)
    >>> steps_of("schedule")
    ()
    """
    parts = [f"entry.{part}" for part in PARTS.get(name, ())]
    return tuple(
        parts or [f"{module}.{name}" for module in path_modules() if _defines(f"kvm_pf.{module}", name)]
    )


def _defines(module: str, name: str) -> bool:
    """Say whether a function is a module's own, not an imported one."""
    item = vars(importlib.import_module(module)).get(name)
    return callable(item) and getattr(item, "__module__", "") == module


def _touch(number: int, hunk: Hunk) -> Touched:
    """Find the functions that a hunk changes, and the steps of these and of what its changed code names."""
    functions = tuple(dict.fromkeys(_functions(hunk)))
    code = [line.text for line in hunk.changed if not re.match(r"\s*(?:\*|/[*/])", line.text)]
    words = dict.fromkeys(re.findall(r"\w+", " ".join(code)))
    defines = any(re.match(r"\s*#\s*define\s+(?:PFERR|EPT_VIOLATION)_", text) for text in code)
    steps = ["bits"] if defines else []
    for name in functions:
        parts = [part for part, names in PARTS.get(name, {}).items() if re.search(names, " ".join(code))]
        steps += [f"entry.{part}" for part in parts] or steps_of(name)
    for name in words:
        steps += steps_of(name) if name not in PARTS else ()
    return Touched(number, hunk.file, functions, tuple(dict.fromkeys(steps)))


def _functions(hunk: Hunk) -> Iterator[str]:
    """Yield the function each changed line is in: the last one defined before it, else that of the `@@` line.

    A definition starts in the first column; where quoting lost the tabs only the `@@` line is asked.
    """
    indented = any(line.text.startswith("\t") for line in hunk.lines)
    current = re.search(r"(\w+)\(", hunk.section)
    for line in hunk.lines:
        if indented and not line.text.rstrip().endswith(";"):
            current = re.match(r"[A-Za-z_][^;={]*?\b(\w+)\(", line.text) or current
        if line.sign != " " and current:
            yield current[1]


# ------------------------------------------------------------------------------------------------ report


def report(path: str | Path) -> tuple[str, int]:
    """Return what `kvm-pf patch PATH` prints, and its exit status.

    Status 0: this patch; 1: a damaged copy or another patch; 2: unreadable.
    """
    try:
        patch = read_patch(path)
    except InputError as error:
        return str(error), 2
    verdict = identify(patch)
    lines = [*_found(patch), "", *_judged(verdict)]
    return "\n".join(lines), 0 if verdict.kind == "this patch" else 1


def _found(patch: Patch) -> Iterator[str]:
    """Yield what was found."""
    yield f"{patch.source}: {patch.subject or 'a patch without a subject'}"
    told = {
        "version": patch.version,
        "part": patch.part,
        "author": patch.author,
        "date": patch.date,
        "message-id": patch.message_id,
        "quoted": f"{patch.quoted} deep, in a reply by {patch.sender or 'someone'}" if patch.quoted else "",
    }
    yield from (f"  {name}: {value}" for name, value in told.items() if value)
    added, removed = patch.counts
    yield f"  files: {len(patch.files)}, hunks: {len(patch.hunks)}, lines: +{added} -{removed}"
    for number, hunk in enumerate(patch.hunks, 1):
        signs = [line.sign for line in hunk.lines]
        yield f"    hunk {number}: {hunk.file} {hunk.span} (+{signs.count('+')} -{signs.count('-')})"


def _judged(verdict: Verdict) -> Iterator[str]:
    """Yield the verdict and its reasons."""
    damaged, another = verdict.kind == "a damaged copy", verdict.kind == "another patch"
    yield f"verdict: {verdict.kind}"
    for number, difference in enumerate(verdict.differences if damaged else ()):
        yield f"  {'then' if number else 'first difference'}: {difference}"
    rows = sum(bool(line.id) for hunk in posted() for line in hunk.lines)
    yield f"  ledger lines found: {len(verdict.present)} of {rows}"
    if another:
        yield from textwrap.wrap(" ".join(verdict.present), initial_indent="    ", subsequent_indent="    ")
    yield f"  changed lines that no ledger row knows: {len(verdict.unmatched)}"
    yield from (f"    {_quote(line)}" for line in verdict.unmatched[:SHOWN])
    for number, _, functions, steps in verdict.touched if another else ():
        where = ", ".join(functions) or "no function"
        yield f"  hunk {number}: {where} -> {', '.join(steps) or 'no step of the model'}"
    yield from (f"  note: {note}" for note in verdict.notes)


def _quote(line: Line) -> str:
    return textwrap.shorten(line.sign + line.text, 90, placeholder=" …")
