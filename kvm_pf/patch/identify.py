# SPDX-License-Identifier: GPL-2.0-only
"""What a diff is: the posted patch, a part of it, a damaged copy, a known relative, or another patch."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import visible
from kvm_pf.common.typed import typed
from kvm_pf.patch import LIMIT
from kvm_pf.patch.ledger import MERGED, PostedHunk, Relative, digest, posted, relatives
from kvm_pf.patch.reader import UNREAD, FileChange, Found, Hunk, Line, Patch, likeness, read_patches
from kvm_pf.revisions import HUNK_STEPS, path_modules

__all__ = ("Change", "Departure", "Identity", "Touched", "identify", "report", "steps_of")

PARTS = {
    "kvm_mmu_page_fault": {
        "sanitize": "PFERR_SYNTHETIC_MASK|PFERR_IMPLICIT_ACCESS",
        "root_is_valid": "VALID_PAGE",
        "mark_private": "PFERR_PRIVATE_ACCESS|SW_PROTECTED|kvm_mem_is_private",
        "reserved_fault": "handle_mmio_page_fault",
    }
}
"""The one kernel function that became several steps, all in `entry`, and the names by which each is told."""

SHOWN = 5
"""How many of the lines that no ledger row knows a report shows."""

MATCHED = 2000
"""How many changed lines of a file are matched with the ledger's at most: the posted patch changes 26 in one."""

SIGNED = {"+": "-", "-": "+", " ": " "}
"""The sign of a line in a patch that is taken back."""

Kind = Literal["this patch", "part of this patch", "a damaged copy", "a known relative", "another patch"]


class Departure(NamedTuple):
    """Where a copy departs from the posted patch.

    `hunk` counts the posted hunks, and `line` the lines of the hunk, from 1; 0 is the `@@` line, or the hunk as
    a whole.  `expected` and `found` say what should stand there and what does; `ledger_id` is "" where no
    changed line is expected.
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
    """What one hunk touches: functions of the kernel, and the steps of the model that stand for them.

    `hunk` is the number of the posted hunk that it is, or its own number in another patch.
    """

    hunk: int
    file: str
    functions: tuple[str, ...]
    steps: tuple[str, ...]


class Change(NamedTuple):
    """One of the patch's three changes, a step of the model, and whether a patch makes it."""

    step: str
    status: Literal["there", "in part", "not there", "with AMD's encryption bit instead"]


class Identity(NamedTuple):
    """What a patch is.

    `what` says it in a phrase.  `differences` is empty for "this patch"; else the first one comes first.
    `present` are the ids of the ledger rows that the patch contains, `unmatched` its changed lines that no row
    knows, `places` the number of the posted hunk that each of its hunks is (None: no such hunk).  `changes` says
    which of the three changes it makes, if it has to do with them; `revision` is the one closest in behaviour,
    "" if none is.
    """

    kind: Kind
    what: str
    differences: tuple[Departure, ...]
    present: tuple[str, ...]
    unmatched: tuple[Line, ...]
    places: tuple[int | None, ...]
    touched: tuple[Touched, ...]
    changes: tuple[Change, ...]
    revision: str
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ verdict


def identify(patch: Patch) -> Identity:
    """Say what `patch` is, what of the posted patch it has, and what it touches.

    Line numbers may have moved, and paths may begin elsewhere.  It is this patch if every line of every hunk is
    there, in order; part of it if some of its hunks are, whole, or in a quotation from their beginning on; a
    relative if it is known by its Message-ID, commit, files or title, or does the same in another way; a
    damaged copy if at least half of its changed lines are the posted patch's own (braces, blank lines and the
    like not counted).

    Raises InputError if `patch` is not a Patch, as `read_patch` returns it.
    """
    if not isinstance(patch, Patch):
        raise InputError(f"a Patch is identified, as read_patch() returns it, not {type(patch).__name__}")
    places = _places(patch)
    present, unmatched = _match(patch)
    differences = _differences(patch, places)
    changes = _changes(patch, present)
    kind, what, revision = _kind(patch, places, present, unmatched, differences, changes)
    known = kind in ("this patch", "part of this patch", "a damaged copy")
    numbers = (
        [place or number for number, place in enumerate(places, 1)] if known else range(1, len(places) + 1)
    )
    return Identity(
        kind=kind,
        what=what,
        differences=differences,
        present=present,
        unmatched=unmatched,
        places=places,
        touched=tuple(_touch(number, hunk) for number, hunk in zip(numbers, patch.hunks, strict=True)),
        changes=changes,
        revision=revision,
        notes=tuple(_notes(patch, kind, places)),
    )


def _kind(
    patch: Patch,
    places: tuple[int | None, ...],
    present: tuple[str, ...],
    unmatched: tuple[Line, ...],
    differences: tuple[Departure, ...],
    changes: tuple[Change, ...],
) -> tuple[Kind, str, str]:
    """Return the kind, the phrase that says it, and the closest revision."""
    made = [change.step for change in changes if change.status == "there"]
    closest = "posted" if len(made) == len(HUNK_STEPS) else "+".join(["before", *made])
    if not differences and patch.wrapped:
        return (
            "a damaged copy",
            "this patch, its long lines wrapped by a mailer, so that git am refuses it",
            "posted",
        )
    if not differences:
        return "this patch", "this patch", "posted"
    if relative := _known_as(patch):
        return "a known relative", f"{relative[0].what} ({relative[1]})", relative[0].revision
    if part := _part(patch, places, differences):
        return "part of this patch", f"part of this patch: {part}", closest
    if same := _recontexted(patch, unmatched):
        return *same, closest
    if another := _akin(patch, changes, present, unmatched):
        return "a known relative", *another
    told = sum(_tells(line) for hunk in patch.hunks for line in hunk.changed)
    known = told - sum(_tells(line) for line in unmatched)
    if 2 * known >= max(told, 1):
        more = _more(patch, places, differences)
        words = f"this patch whole, and more with it: {more}" if more else "a damaged copy of this patch"
        return "a damaged copy", words, closest
    if relative := _titled(patch):
        return "a known relative", f"{relative[0].what} ({relative[1]})", relative[0].revision
    return "another patch", "another patch", closest if made else ""


def _tells(line: Line) -> bool:
    return re.search(r"\w", line.text) is not None


def _same_file(one: str, other: str) -> bool:
    """Say whether two paths can be of one file: one may begin in a folder inside, or outside, of the other's.

    A path that was not found, "", can be of any.
    """
    if not (one and other):
        return True
    left, right = one.split("/")[::-1], other.split("/")[::-1]
    return all(a == b for a, b in zip(left, right, strict=False))


def _rows(want: PostedHunk) -> list[tuple[str, str]]:
    return [(row.sign, row.digest) for row in want.lines]


def _given(hunk: Hunk) -> list[tuple[str, str]]:
    return [(line.sign, digest(line.text)) for line in hunk.lines]


def _places(patch: Patch) -> tuple[int | None, ...]:
    """Find the posted hunk, counted from 1, that each hunk of a patch is most like, each once."""
    scores = []
    for place, want in enumerate(posted(), 1):
        rows = {row for row in _rows(want) if row[1] != digest("")}
        for number, hunk in enumerate(patch.hunks):
            if _same_file(hunk.file, want.file) and (alike := sum(line in rows for line in _given(hunk))):
                scores.append((-alike, number, place))
    found: dict[int, int] = {}
    for _, number, place in sorted(scores):
        if number not in found and place not in found.values():
            found[number] = place
    return tuple(found.get(number) for number in range(len(patch.hunks)))


def _match(patch: Patch) -> tuple[tuple[str, ...], tuple[Line, ...]]:
    """Return the ids of the ledger rows in `patch`, in the ledger's order, and the lines no row knows."""
    changed = [(hunk.file, hunk.changed) for hunk in patch.hunks]
    present: list[str] = []
    known: set[tuple[str, Line]] = set()
    for want in posted():
        rows = [row for row in want.lines if row.id]
        wanted = [(row.sign, row.digest) for row in rows]
        here = [
            (file, line)
            for file, lines in changed
            if _same_file(file, want.file)
            for line in lines
            if (line.sign, digest(line.text)) in wanted
        ][:MATCHED]
        given = [(line.sign, digest(line.text)) for _, line in here]
        for a, b, size in SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks():
            if any(_tells(line) for _, line in here[b : b + size]):  # not a blank line or brace alone
                present += [row.id for row in rows[a : a + size]]
                known.update(here[b : b + size])
    return tuple(present), tuple(
        line for file, lines in changed for line in lines if (file, line) not in known
    )


def _differences(patch: Patch, places: Sequence[int | None]) -> tuple[Departure, ...]:
    """Compare hunk by hunk; say what differs in the first hunk that does: its place, counts, lines.

    A hunk that is there and differs comes before one that is missing: a quotation has often only some.
    """
    missing: list[Departure] = []
    order = [place for place in places if place]
    for number, want in enumerate(posted(), 1):
        if number not in order:
            why = "no hunk of it that can be read" if _mentioned(patch, want.file) else "this one is missing"
            missing.append(Departure(want.file, number, 0, str(want.span), why))
            continue
        have = patch.hunks[places.index(number)]
        if any(place > number for place in order[: order.index(number)]):
            return (
                Departure(want.file, number, 0, str(want.span), "a later hunk: the hunks are out of order"),
            )
        found_here = []
        if want.span[1::2] != have.span[1::2]:
            found_here.append(Departure(want.file, number, 0, f"the counts of {want.span}", str(have.span)))
        if line := _first_line(number, want, have):
            found_here.append(line)
        if found_here:
            return tuple(found_here)
    for number, (place, hunk) in enumerate(zip(places, patch.hunks, strict=True), 1):
        if place is None:
            end = "the end of the patch" if number > len(posted()) else "a hunk of this patch"
            extra = f"one more hunk, {hunk.span}"
            return (*missing, Departure(hunk.file, max(number, len(posted()) + 1), 0, end, extra))
    for other in _foreign(patch):
        extra = f"one more file, {other.what}"
        return (*missing, Departure(other.file, len(posted()) + 1, 0, "the end of the patch", extra))
    return tuple(missing)


def _foreign(patch: Patch) -> list[FileChange]:
    """List the files that a patch changes without a hunk and the posted patch does not touch."""
    return [
        other
        for other in patch.others
        if other.what != UNREAD and not any(_same_file(other.file, want.file) for want in posted())
    ]


def _mentioned(patch: Patch, file: str) -> bool:
    """Say whether a patch announces a file and has no hunk of it."""
    return any(_same_file(other.file, file) for other in patch.others)


def _first_line(number: int, want: PostedHunk, have: Hunk) -> Departure | None:
    """Return the first line of a hunk that differs."""
    wanted, given = _rows(want), _given(have)
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
    return Departure(want.file, number, at + 1, expected, found, ledger_id)


def _part(patch: Patch, places: Sequence[int | None], differences: Sequence[Departure]) -> str:
    """Say which hunks of the posted patch a patch has, if that is all it has and they are as posted."""
    if not patch.hunks or _foreign(patch) or None in places or list(places) != sorted(p for p in places if p):
        return ""
    if not patch.quoted and any(_mentioned(patch, want.file) for want in posted()):
        return ""
    cut = []
    for place, have in zip(places, patch.hunks, strict=True):
        want = posted()[(place or 1) - 1]
        rows, given = _rows(want), _given(have)
        if given == rows and want.span[1::2] == have.span[1::2]:
            continue
        if not (patch.quoted and given == rows[: len(given)] and want.span[1::2] == have.span[1::2]):
            return ""
        cut.append(f"of hunk {place} the first {len(given)} of {len(rows)} lines")
    names = [str(place) for place in places]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return "; ".join([f"hunk{'s' if len(names) > 1 else ''} {listed} of {len(posted())}", *cut])


def _more(patch: Patch, places: Sequence[int | None], differences: Sequence[Departure]) -> str:
    """Say what a patch has beside all of the posted one, whole and in order; "" if it has not all of it."""
    if [place for place in places if place] != list(range(1, len(posted()) + 1)):
        return ""
    if any(departure.hunk <= len(posted()) for departure in differences):
        return ""
    hunks = [hunk for place, hunk in zip(places, patch.hunks, strict=True) if place is None]
    files = dict.fromkeys([*(hunk.file for hunk in hunks), *(other.file for other in _foreign(patch))])
    count = f"{len(hunks)} hunk{'s' if len(hunks) != 1 else ''}"
    return f"{count} in {', '.join(list(files)[:3])}{' and others' if len(files) > 3 else ''}"


def _recontexted(patch: Patch, unmatched: Sequence[Line]) -> tuple[Kind, str] | None:
    """Recognise the posted changes, whole hunks of them, among fewer or more unchanged lines than posted.

    Hunks of fewer lines are stretches of posted ones, and posted hunks stretches of those with more.  Without any
    unchanged line the changed ones are held together, but blank ones: these go before or behind as one likes.
    """
    if any(map(_tells, unmatched)) or not patch.hunks or not all(hunk.complete for hunk in patch.hunks):
        return None
    given = [(hunk.file, _given(hunk)) for hunk in patch.hunks]
    bare = all(sign != " " for _, rows in given for sign, _ in rows)
    there = []
    for number, want in enumerate(posted(), 1):
        rows = _rows(want)
        here = [some for file, some in given if _same_file(file, want.file)]
        mine = [row for some in here for row in some]
        changed = [row for row in rows if row[0] != " " and row[1] != digest("")]
        same = changed == [row for row in mine if row[0] != " " and row[1] != digest("")]
        if bare:
            is_there = same
        else:
            is_there = any(_stretch(rows, some) for some in here) or (
                same and all(_stretch(some, rows) for some in here)
            )
        there += [number] * is_there
    count = sum(sign != " " for _, rows in given for sign, _ in rows)
    if not there or count != sum(bool(row.id) for number in there for row in posted()[number - 1].lines):
        return None
    have, posted_lines = sum(len(rows) for _, rows in given), sum(len(posted()[n - 1].lines) for n in there)
    if have == posted_lines:
        return None
    fewer = have < posted_lines
    how = f"with {'fewer' if fewer else 'more'} unchanged lines around, as by diff -U"
    if len(there) == len(posted()):
        return "this patch", f"this patch {how}: every changed line is there"
    names = " and ".join(map(str, there))
    return (
        "part of this patch",
        f"part of this patch: hunk{'s' * (len(there) > 1)} {names} of {len(posted())}, {how}",
    )


def _stretch(part: Sequence[object], whole: Sequence[object]) -> bool:
    """Say whether `part` stands in `whole` without a gap."""
    return any(list(whole[at : at + len(part)]) == list(part) for at in range(len(whole) - len(part) + 1))


# ------------------------------------------------------------------------------------------------ relatives

_BIT_34 = (
    r"(?:BIT|BIT_ULL|_BITULL)\( ?(?:34|PFERR_GUEST_ENC_BIT) ?\)|\(?1U?LL? ?<< ?(?:34|PFERR_GUEST_ENC_BIT)\)?"
)
_NAMES_34 = re.compile(rf"#define (\w+) (?:{_BIT_34})")


def _borrowed(added: str) -> dict[str, re.Match[str] | None]:
    """Find in added lines where AMD's encryption bit, by any name, stands for private memory: for each of two steps."""
    names = "|".join(["PFERR_GUEST_ENC_MASK", *_NAMES_34.findall(added)])
    bit = rf"(?:\b(?:{names})\b|{_BIT_34})"
    return {
        "mark_private": re.search(rf"\|= {bit}|= \w+ \| {bit}", added),
        "is_private": re.search(rf"\bis_private = ([^,;]*{bit}[^,;]*)", added),
    }


def _added(patch: Patch) -> str:
    """Return the added lines as one line, to find statements in."""
    return " ".join(
        " ".join(line.text.split()) for hunk in patch.hunks for line in hunk.changed if line.sign == "+"
    )


def _changes(patch: Patch, present: Sequence[str]) -> tuple[Change, ...]:
    """Say which of the three changes a patch makes, by the lines of code of each; nothing if none is touched."""
    rows = [row for hunk in posted() for row in hunk.lines]
    borrowed = _borrowed(_added(patch))
    found = []
    for step in HUNK_STEPS:
        there = [row.id in present for row in rows if row.step == step]
        status: Literal["there", "in part", "not there", "with AMD's encryption bit instead"] = "not there"
        if there and all(there):
            status = "there"
        elif borrowed.get(step):
            status = "with AMD's encryption bit instead"
        elif any(there):
            status = "in part"
        found.append(Change(step, status))
    return tuple(found) if any(change.status != "not there" for change in found) else ()


def _known_as(patch: Patch) -> tuple[Relative, str] | None:
    """Find the relative that a patch is by its Message-ID, its commit or the files that it names."""
    for relative in relatives():
        if any(name in relative.messages for name in patch.known_as):
            return relative, "by its Message-ID"
        if any(len(name) >= 7 and relative.commit.startswith(name) for name in patch.known_as):
            return relative, f"commit {relative.commit[:12]}"
        if any(_same_blobs(blob, row) for blob in patch.blobs for row in relative.blobs):
            return relative, "by the files it names"
    return None


def _same_blobs(one: str, other: str) -> bool:
    """Say whether two "old..new" name the same files; names are cut to different lengths, 7 digits at least."""
    pairs = list(zip(one.split(".."), other.split(".."), strict=True))
    return all(min(len(a), len(b)) >= 7 and (a.startswith(b) or b.startswith(a)) for a, b in pairs)


def _titled(patch: Patch) -> tuple[Relative, str] | None:
    """Find the relative whose title a patch has; a replier's own diff has none of its own."""
    reply, _, title = patch.subject.rpartition("] ")
    if reply.lower().startswith("re:") and not patch.quoted:
        return None
    name = digest(title.lower())
    return next(((row, "by its title") for row in relatives() if row.title == name), None)


def _akin(
    patch: Patch, changes: Sequence[Change], present: Sequence[str], unmatched: Sequence[Line]
) -> tuple[str, str] | None:
    """Recognise, by its lines or by what it does, the merged form, the two other ways, and the patch taken back."""
    rows = {row.name: row for row in relatives()}
    if initialiser := _borrowed(_added(patch))["is_private"]:
        row = rows["guest_enc_gated" if "has_private_mem" in initialiser[1] else "guest_enc_ungated"]
        return f"{row.what} (by what it does)", row.revision
    merged = rows["merged"]
    made = {change.step: change.status == "there" for change in changes}
    without_sanitiser = made == {"sanitize": False, "mark_private": True, "is_private": True}
    own = any(line.sign + digest(line.text) in merged.lines for line in unmatched)
    if own or (without_sanitiser and "h1+10" in present and "h1+02" not in present):
        if patch.counts == MERGED or without_sanitiser:
            how = "by its lines" if patch.counts == MERGED else "by its lines, but not all of them"
            return f"{merged.what} ({how})", merged.revision
        closest = "+".join(["before", *(step for step, is_made in made.items() if is_made)])
        return f"a part of {merged.what} (by its lines)", closest
    if changes or present:
        return None
    back = patch._replace(hunks=tuple(_flipped(hunk) for hunk in patch.hunks))
    if not _differences(back, _places(back)):
        return "this patch taken back: it leads from what was posted to what was before", "before"
    there, strange = _match(back)
    if not there or sum(map(_tells, strange)) > len(there):
        return None
    if other := _akin(back, _changes(back, there), there, strange):
        return f"{other[0]}, taken back", "before"
    return None


def _flipped(hunk: Hunk) -> Hunk:
    """Return a hunk that undoes another; removed lines come before added ones, as diff writes them."""
    lines: list[Line] = []
    run: list[Line] = []
    for line in hunk.lines:
        if line.sign == " ":
            lines += [*sorted(run, key=lambda each: each.sign == "+"), line]
            run = []
        else:
            run.append(Line(SIGNED[line.sign], line.new, line.old, line.text))
    lines += sorted(run, key=lambda each: each.sign == "+")
    span = hunk.span._replace(
        old=hunk.span.new, old_count=hunk.span.new_count, new=hunk.span.old, new_count=hunk.span.old_count
    )
    return hunk._replace(span=span, lines=tuple(lines))


def _notes(patch: Patch, kind: Kind, places: Sequence[int | None]) -> Iterator[str]:
    known = kind in ("this patch", "part of this patch", "a damaged copy")
    for number, (place, hunk) in enumerate(zip(places, patch.hunks, strict=True), 1):
        name = place or number if known else number
        if place and kind in ("this patch", "part of this patch") and hunk.span != posted()[place - 1].span:
            yield f"hunk {name} stands at {hunk.span}, posted at {posted()[place - 1].span}"
        if not hunk.complete:
            yield f"hunk {name} is cut short"
    if kind == "a damaged copy":
        absent = [str(n) for n in range(1, len(posted()) + 1) if n not in places]
        if absent:
            yield f"of the posted patch's {len(posted())} hunks not there: {', '.join(absent)}"


# ------------------------------------------------------------------------------------------------ what it touches


@typed()
def steps_of(name: str) -> tuple[str, ...]:
    """Return the steps of the model, as "module.function", that stand for the kernel function `name`.

    >>> steps_of("handle_mmio_page_fault")
    ('mmio.handle_mmio_page_fault',)
    >>> steps_of("schedule")
    ()
    """
    parts = tuple(f"entry.{part}" for part in PARTS.get(name, ()))
    return parts or _steps().get(name, ())


@cache
def _steps() -> dict[str, tuple[str, ...]]:
    """Return the functions of the path by name: a module's own, not imported ones."""
    found: dict[str, tuple[str, ...]] = {}
    for module in path_modules():
        for name, item in vars(importlib.import_module(f"kvm_pf.{module}")).items():
            if callable(item) and getattr(item, "__module__", "") == f"kvm_pf.{module}":
                found[name] = (*found.get(name, ()), f"{module}.{name}")
    return found


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
    current = _defined(hunk.section)
    for line in hunk.lines:
        if indented and re.match(r"[A-Za-z_]", line.text) and not line.text.rstrip().endswith(";"):
            current = _defined(line.text) or current
        if line.sign != " " and current:
            yield current


def _defined(text: str) -> str:
    """Return the name before the first bracket of a definition, "" if there is none."""
    before, bracket, _ = text.partition("(")
    name = re.search(r"\w+\Z", before[-200:])
    return name[0] if bracket and name and not set(before) & set(";={") else ""


# ------------------------------------------------------------------------------------------------ report


@typed()
def report(source: str | bytes | Path, limit: int = LIMIT) -> tuple[str, int]:
    """Return what `kvm-pf patch` prints of one file, and its exit status.

    Each diff has a line; of one alone, or of the one most like the posted patch, more follows.  Status 0: this
    patch is there, whole; 1: it is not; 2: unreadable.  `limit` is as in `read_patches`.
    """
    try:
        found = read_patches(source, limit)
    except InputError as error:
        return str(error), 2
    verdicts = [identify(patch) for patch in found.patches]
    lines = [visible(line) for line in _report(found, verdicts)]
    return "\n".join(lines), 0 if any(verdict.kind == "this patch" for verdict in verdicts) else 1


def _report(found: Found, verdicts: Sequence[Identity]) -> Iterator[str]:
    """Yield a line for each diff and each reason, then the particulars of one."""
    several = len(found.patches) > 1
    for number, (patch, verdict) in enumerate(zip(found.patches, verdicts, strict=True), 1):
        place = f", diff {number} of {len(found.patches)}" if several else ""
        quoted = ", quoted" if several and patch.quoted else ""
        if several:
            quoted += ", {0} file{2} +{1[0]} -{1[1]}".format(
                len(patch.files), patch.counts, "s" * (len(patch.files) != 1)
            )
        yield f"{found.source}{place}: {verdict.what}{quoted}" + (
            f": {_shorten(patch.subject)}" if patch.subject else ""
        )
    yield from (f"{found.source}: not read: {reason}" for reason in found.refused)
    chosen = max(
        range(len(verdicts)), key=lambda n: (verdicts[n].kind == "this patch", likeness(found.patches[n]))
    )
    if several:
        if all(verdict.kind == "another patch" for verdict in verdicts):
            return
        yield ""
        yield f"diff {chosen + 1}:"
    yield from _particulars(found.patches[chosen], verdicts[chosen])


def _particulars(patch: Patch, verdict: Identity) -> Iterator[str]:
    """Yield what was found, and the verdict's reasons."""
    told = {
        "version": patch.version,
        "part": patch.part,
        "author": patch.author,
        "date": patch.date,
        "message-id": patch.message_id,
        "quoted": f"{patch.quoted} deep, in a reply by {patch.sender or 'someone'}" if patch.quoted else "",
    }
    yield from (f"  {name}: {_shorten(value)}" for name, value in told.items() if value)
    added, removed = patch.counts
    yield f"  files: {len(patch.files)}, hunks: {len(patch.hunks)}, lines: +{added} -{removed}"
    for touched, hunk in zip(verdict.touched, patch.hunks, strict=True):
        signs = [line.sign for line in hunk.lines]
        file, counts = _shorten(hunk.file) or "no file named", f"(+{signs.count('+')} -{signs.count('-')})"
        yield f"    hunk {touched.hunk}: {file} {hunk.span} {counts}"
    yield from (f"    {_shorten(other.file)}: {_shorten(other.what)}" for other in patch.others)
    damaged = verdict.kind == "a damaged copy"
    for number, difference in enumerate(verdict.differences if damaged else ()):
        yield f"  {'then' if number else 'first difference'}: {difference}"
    if verdict.changes:
        yield "  changes: " + "; ".join(f"{change.step} {change.status}" for change in verdict.changes)
    if verdict.revision:
        yield f"  closest in behaviour: {verdict.revision} (kvm-pf explain CODE --revision {verdict.revision})"
    rows = sum(bool(line.id) for hunk in posted() for line in hunk.lines)
    yield f"  ledger lines found: {len(verdict.present)} of {rows}"
    another = verdict.kind in ("another patch", "a known relative")
    if another:
        yield from textwrap.wrap(" ".join(verdict.present), initial_indent="    ", subsequent_indent="    ")
    yield f"  changed lines that no ledger row knows: {len(verdict.unmatched)}"
    yield from (f"    {_quote(line)}" for line in verdict.unmatched[:SHOWN])
    for number, _, functions, steps in verdict.touched if another else ():
        where = _shorten(", ".join(functions)) or "no function"
        yield f"  hunk {number}: {where} -> {', '.join(steps) or 'no step of the model'}"
    yield from (f"  note: {note}" for note in verdict.notes)


def _shorten(text: str) -> str:
    return textwrap.shorten(text[:1000], 200, placeholder=" …")


def _quote(line: Line) -> str:
    return textwrap.shorten(line.sign + line.text[:1000], 90, placeholder=" …")
