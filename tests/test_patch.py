# SPDX-License-Identifier: GPL-2.0-only
"""The ledger's structure, its digests against the mail, and the patch reader on every form a patch comes in.

No text of the patch stands here.  Each form and each damage is built at run time: from the mail, where it is
at hand, and from a small patch of our own with a ledger of its own, so that the machinery is always tested.
"""

import base64
import bz2
import csv
import difflib
import gzip
import hashlib
import html
import importlib
import json
import lzma
import os
import quopri
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unidiff import PatchSet

from kvm_pf import bits
from kvm_pf.common.errors import InputError
from kvm_pf.patch import identify as patch
from kvm_pf.patch import ledger as tables
from kvm_pf.patch import reader
from kvm_pf.patch.restore import restored, unflowed
from kvm_pf.revisions import REVISIONS

MAIL = "000_ebfdf82abda4905c.txt"
SPANS = [(267, 7, 267, 18), (5839, 19, 5839, 31), (306, 7, 306, 7)]
COUNTS = [(11, 0), (19, 7), (1, 1)]


# ------------------------------------------------------------------------------------ originals to build from


class Original(NamedTuple):
    """A patch taken apart: per hunk the lines before its `@@` line, that line, its body."""

    before: list[list[str]]
    headers: list[str]
    bodies: list[list[tuple[str, str]]]

    def diff(self, blank: str = " ") -> str:
        """Put it together as a plain diff; `blank` is the sign of a context line."""
        lines = []
        for before, header, body in zip(self.before, self.headers, self.bodies, strict=True):
            lines += [*before, header, *((blank if sign == " " else sign) + text for sign, text in body)]
        return "\n".join(lines) + "\n"

    def edit(self, hunk: int, at: int, *lines: tuple[str, str], drop: int = 1) -> "Original":
        """Replace `drop` lines of a hunk by others."""
        bodies = [list(body) for body in self.bodies]
        bodies[hunk][at : at + drop] = lines
        return self._replace(bodies=bodies)


def sha(text: str) -> str:
    return hashlib.sha256(re.sub(r"\s+", " ", text).strip().encode()).hexdigest()[:16]


def take_apart(text: str) -> Original:
    """Take apart a diff whose context lines have no sign, by the counts of its `@@` lines."""
    before, headers, bodies = [[]], [], []
    old = new = 0
    for line in text.split("\n"):
        if match := re.match(r"@@ -\d+,(\d+) \+\d+,(\d+) @@", line):
            old, new = map(int, match.groups())
            headers.append(line)
            bodies.append([])
        elif old or new:
            sign = line[:1] if line[:1] in ("+", "-") else " "
            bodies[-1].append((sign, line.removeprefix(sign)))
            old -= sign != "+"
            new -= sign != "-"
            if not (old or new):
                before.append([])
        else:
            before[-1].append(line)
    return Original(before[:-1], headers, bodies)


OURS = """\
diff --git a/tea/pot.h b/tea/pot.h
index 111111111111..222222222222 100644
--- a/tea/pot.h
+++ b/tea/pot.h
@@ -10,4 +10,6 @@ struct pot;
#define POT_FULL (1 << 0)
#define POT_HOT (1 << 1)
+/* The lid is on. */
+#define POT_LID (1 << 2)

struct cup;
diff --git a/tea/brew.c b/tea/brew.c
index 333333333333..444444444444 100644
--- a/tea/brew.c
+++ b/tea/brew.c
@@ -120,8 +122,9 @@ int brew(struct pot *pot, unsigned long flags)
int minutes = 0;

-if (flags & POT_HOT)
-minutes = 3;
+if (flags & POT_LID)
+minutes = 4;
+
wait_for(pot, minutes);

return minutes;
}
diff --git a/tea/cup.c b/tea/cup.c
index 555555555555..666666666666 100644
--- a/tea/cup.c
+++ b/tea/cup.c
@@ -7,3 +7,3 @@ static int pour(struct pot *pot)
struct cup cup = { 0 };
-cup.warm = pot->flags & POT_HOT;
+cup.warm = pot->flags & POT_LID;
return fill(&cup);
"""


@pytest.fixture(scope="session")
def mail(root) -> str:
    """The mail that the project was made from."""
    folder = Path(os.environ.get("KVM_PF_SPEC", root.parent / "shared" / "spec"))
    if not (folder / MAIL).is_file():
        pytest.skip("the mail is not here (KVM_PF_SPEC names its folder)")
    return (folder / MAIL).read_text(encoding="utf-8")


@pytest.fixture
def posted(mail) -> Original:
    """The patch in the mail, taken apart."""
    quoted = [line[1:].removeprefix(" ") for line in mail.split("\n") if line.startswith(">")]
    start = next(i for i, line in enumerate(quoted) if line.startswith("diff --git"))
    return take_apart("\n".join(quoted[start:]))


@pytest.fixture(params=["mail", "ours"])
def original(request, tmp_path, monkeypatch, root) -> Original:
    """The real patch with the real ledger, and our own with one of its own."""
    if request.param == "mail":
        yield request.getfixturevalue("posted")
        return
    ours = take_apart(OURS)
    write_ledger(ours, tmp_path / "data" / "ledger")
    monkeypatch.setattr(tables, "data_dir", lambda: tmp_path / "data")
    shutil.copy(root / "data" / "ledger" / "relatives.csv", tmp_path / "data" / "ledger")
    caches = (tables.posted, tables.relatives, reader._telling_rows)
    for cache in caches:
        cache.cache_clear()
    yield ours
    for cache in caches:
        cache.cache_clear()


def numbered(original: Original):
    """Yield (hunk from 1, sign, old line, new line, text) for each line."""
    for number, (header, body) in enumerate(zip(original.headers, original.bodies, strict=True), 1):
        old, new = map(int, re.match(r"@@ -(\d+),\d+ \+(\d+),", header).groups())
        for sign, text in body:
            yield number, sign, old, new, text
            old += sign != "+"
            new += sign != "-"


def write_ledger(original: Original, folder: Path) -> None:
    """Write the two tables for a patch."""
    folder.mkdir(parents=True)
    files = [before[-1].removeprefix("+++ b/") for before in original.before]
    counts: dict[tuple[int, str], int] = {}
    rows, context = [], []
    for hunk, sign, old, new, text in numbered(original):
        if sign == " ":
            context.append({"hunk": hunk, "old_line": old, "new_line": new, "digest": sha(text)})
            continue
        counts[hunk, sign] = counts.get((hunk, sign), 0) + 1
        place = {"old_line": old if sign == "-" else "", "new_line": new if sign == "+" else ""}
        row = {
            "id": f"h{hunk}{sign}{counts[hunk, sign]:02d}",
            "file": files[hunk - 1],
            "hunk": hunk,
            "sign": sign,
            "step": ["bits", "is_private", "is_private"][hunk - 1],
        }
        if hunk == 2:
            row["step"] = "mark_private" if "minutes" in text else "sanitize"
        role = "code" if text.strip() and not text.startswith("/*") else "comment"
        rows.append(dict.fromkeys(tables.DTYPES, "") | row | place | {"role": role, "digest": sha(text)})
    for name, table in (("ledger.csv", rows), ("context.csv", context)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)


# ------------------------------------------------------------------------------------ the ledger


@pytest.fixture(scope="module")
def frame():
    return tables.ledger()


def test_ledger_has_39_rows_with_documented_types(frame):
    assert len(frame) == 39
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == tables.DTYPES
    assert list(frame.columns) == list(tables.DTYPES)
    assert frame.id.is_unique


def test_ledger_counts_per_hunk(frame):
    found = [((part.sign == "+").sum(), (part.sign == "-").sum()) for _, part in frame.groupby("hunk")]
    assert found == COUNTS


def test_ledger_ids_count_up_within_hunk_and_sign(frame):
    for (hunk, sign), part in frame.groupby(["hunk", "sign"]):
        assert list(part.id) == [f"h{hunk}{sign}{n:02d}" for n in range(1, len(part) + 1)]


def test_ledger_line_numbers_fill_the_headers(frame, root):
    with (root / "data" / "ledger" / "context.csv").open(newline="") as file:
        context = list(csv.DictReader(file))
    for hunk, (old, old_count, new, new_count) in enumerate(SPANS, 1):
        part = frame[frame.hunk == hunk]
        around = [row for row in context if row["hunk"] == str(hunk)]
        removed = [*part.old_line.dropna(), *(int(row["old_line"]) for row in around)]
        added = [*part.new_line.dropna(), *(int(row["new_line"]) for row in around)]
        assert sorted(removed) == list(range(old, old + old_count))
        assert sorted(added) == list(range(new, new + new_count))
        assert part.old_line.notna().tolist() == (part.sign == "-").tolist()
        assert part.new_line.notna().tolist() == (part.sign == "+").tolist()


def test_ledger_joins_to_the_posted_hunks():
    assert [tuple(hunk.span) for hunk in tables.posted()] == SPANS
    assert [len(hunk.lines) for hunk in tables.posted()] == [18, 38, 8]


def test_every_step_of_the_ledger_exists(frame):
    for row in frame.itertuples():
        module = importlib.import_module(row.module)
        assert row.module.endswith(f".{row.step}") or callable(getattr(module, row.step)), row.id


def test_every_error_code_bit_of_the_ledger_is_in_the_table(frame):
    names = {name for cell in frame.symbols for name in cell.split() if name.startswith("PFERR_")}
    assert {name for name in names if not hasattr(bits, name)} == set()


def test_every_part_of_a_kernel_function_exists():
    for parts in patch.PARTS.values():
        for part in parts:
            assert callable(getattr(importlib.import_module("kvm_pf.entry"), part))


def test_every_row_is_told(frame):
    assert set(frame.role) == {"comment", "code", "blank"}
    assert (frame.does != "").all()
    assert frame.fate.str.match(r"(kept|moved|gone)\b").all()
    assert frame.notebook.str.fullmatch(r"notebooks/\d\d_\w+\.ipynb#[\w-]+").all()
    assert frame.digest.str.fullmatch(r"[0-9a-f]{16}").all()
    assert ((frame.role == "blank") == (frame.digest == sha(""))).all()
    assert ((frame.hunk == 1) == (frame.function == "")).all()


def test_removed_lines_are_gone_and_added_ones_are_not(frame):
    assert (frame.fate.str.startswith("gone") == (frame.sign == "-")).all()


# ------------------------------------------------------------------------------------ the ledger and the mail


def test_mail_agrees_with_every_row(posted, frame, root):
    lines = list(numbered(posted))
    changed = [line for line in lines if line[1] != " "]
    assert [line[:2] for line in changed] == list(zip(frame.hunk, frame.sign, strict=True))
    assert [sha(text) for *_, text in changed] == list(frame.digest)
    number = frame.old_line.fillna(frame.new_line)
    assert [old if sign == "-" else new for _, sign, old, new, _ in changed] == list(number)
    with (root / "data" / "ledger" / "context.csv").open(newline="") as file:
        context = [tuple(row.values()) for row in csv.DictReader(file)]
    expected = [(str(h), str(old), str(new), sha(text)) for h, sign, old, new, text in lines if sign == " "]
    assert context == expected


def test_mail_agrees_with_roles_and_symbols(posted, frame):
    changed = [text for _, sign, _, _, text in numbered(posted) if sign != " "]
    for row, text in zip(frame.itertuples(), changed, strict=True):
        role = "blank" if not text.strip() else "comment" if re.match(r"\s*(/\*|\*)", text) else "code"
        assert row.role == role, row.id
        assert [name for name in row.symbols.split() if not re.search(rf"\b{name}\b", text)] == [], row.id
        assert (role == "code") <= bool(row.symbols), row.id


def test_repository_holds_no_line_of_the_patch(posted, root):
    lines = {" ".join(text.split()) for _, sign, _, _, text in numbered(posted) if sign != " "}
    telling = {line for line in lines if len(line) > 20}
    assert len(telling) > 25
    folders = [root / name for name in ("kvm_pf", "data/ledger", "tests", "notebooks", "tools")]
    files = [*root.glob("*.*"), *(path for folder in folders for path in folder.rglob("*"))]
    for path in files:
        if path.suffix in (".py", ".md", ".csv", ".toml", ".ipynb", ".json", ".yml"):
            text = " ".join(path.read_text(encoding="utf-8").split())
            assert [line for line in telling if line in text] == [], path


def test_mail_itself_is_this_patch(mail):
    found = reader.read_patch(mail)
    assert [tuple(hunk.span) for hunk in found.hunks] == SPANS
    assert found.counts == (31, 8)
    assert (found.part, found.version, found.quoted) == ("05/16", "v1", 1)
    assert (found.author, found.sender) == ("Sean Christopherson", "Xu Yilun")
    assert found.date.startswith("Wed Mar 06 2024")
    verdict = patch.identify(found)
    assert verdict.kind == "this patch"
    assert len(verdict.present) == 39
    assert [touched.functions for touched in verdict.touched] == [
        (),
        ("kvm_mmu_page_fault",),
        ("kvm_mmu_do_page_fault",),
    ]
    assert verdict.touched[0].steps == ("bits",)
    assert verdict.touched[1].steps[:2] == ("entry.sanitize", "entry.mark_private")
    assert "fault.is_private" in verdict.touched[2].steps


# ------------------------------------------------------------------------------------ forms a patch comes in

SUBJECT = "[PATCH v3 05/16] tea: Keep the lid on"
BODY = "Tea cools.\n\nSigned-off-by: Ann Writer <ann@example.org>\n---\n 3 files changed\n\n"
FIELDS = (
    "From: Ann Writer <ann@example.org>\n"
    "Date: Wed, 28 Feb 2024 02:41:36 +0000\n"
    f"Subject: {SUBJECT}\n"
    "Message-ID: <5-ann@example.org>\n"
)
FOREIGN = """\
diff --git a/arch/x86/kvm/mmu/tea.c b/arch/x86/kvm/mmu/tea.c
--- a/arch/x86/kvm/mmu/tea.c
+++ b/arch/x86/kvm/mmu/tea.c
@@ -50,3 +50,4 @@ static int handle_mmio_page_fault(struct kvm_vcpu *vcpu, u64 addr, bool direct)
 \tu64 spte;

+\tdo_nothing(spte);
 \treturn 0;
@@ -90,5 +91,5 @@ static int other(void)
 }

 static int kvm_mmu_page_fault(struct kvm_vcpu *vcpu)
 {
-\tstep_one();
+\tstep_two();
diff --git a/tea/cup.h b/tea/cup.h
--- a/tea/cup.h
+++ b/tea/cup.h
@@ -1,1 +1,2 @@
 #define CUP 1
+#define PFERR_TEA 2
"""


def format_patch(o: Original) -> str:
    return f"From {'1' * 40} Mon Sep 17 00:00:00 2001\n{FIELDS}\n{BODY}{o.diff()}-- \n2.44.0\n"


def quoted(text: str, mark: str = "> ") -> str:
    return "\n".join(f"{mark}{line}".rstrip() for line in text.removesuffix("\n").split("\n")) + "\n"


def reply(o: Original, mark: str = "> ", depth: int = 1) -> str:
    inside = quoted(BODY + o.diff(blank=""), mark)
    said = quoted("On Wed, Feb 28, 2024, Ann Writer wrote:", mark[: len(mark) * (depth - 1) // depth])
    return f"Re: {SUBJECT}\nFrom: Bob Reader\nDate: Wed Mar 06 2024\n{said}{inside}\nI see.\n"


def commented(o: Original) -> str:
    """A reply to a reply, with words of both repliers between the lines of the hunks."""
    lines = quoted(BODY + o.diff(blank=""), "> > ").split("\n")
    at = [i for i, line in enumerate(lines) if line.startswith("> > +") and "+++" not in line]
    for i in reversed(at):
        lines[i + 1 : i + 1] = ["> ", "> Why this?", ">", "", "Because.", ""]
    head = f"Re: {SUBJECT}\nFrom: Bob Reader\nOn Mon, X wrote:\n> On Wed, Feb 28, 2024, Ann Writer wrote:\n"
    return head + "\n".join(lines)


def encoded(o: Original, encoding: str) -> bytes:
    text = (BODY + o.diff()).replace("\n", "\r\n").encode()
    body = base64.encodebytes(text) if encoding == "base64" else quopri.encodestring(text)
    fields = f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}\n"
    return f"{FIELDS}MIME-Version: 1.0\n{fields}\n".encode() + body


def attached(o: Original) -> str:
    part = base64.encodebytes(o.diff().encode()).decode()
    return (
        f'{FIELDS}MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\n\n'
        "--b\nContent-Type: text/plain\n\nSee the file.\n"
        "--b\nContent-Type: application/octet-stream\nContent-Disposition: attachment; filename=tea.patch\n"
        f"Content-Transfer-Encoding: base64\n\n{part}\n--b--\n"
    )


def mailbox(o: Original) -> str:
    talk = f"From: Bob Reader\nSubject: Re: {SUBJECT}\n\nFine.\n\n"
    return f"From bob@example.org Wed Mar  6 09:48:00 2024\n{talk}{format_patch(o)}"


def series(o: Original) -> str:
    first = f"From {'2' * 40} Mon Sep 17 00:00:00 2001"
    other = f"{first}\nFrom: X <x@example.org>\nSubject: [PATCH 04/16] Y\n\n{FOREIGN}-- \n2.44.0\n\n"
    return f"{other}{format_patch(o)}\n{other}"


def git_show(o: Original) -> str:
    head = (
        f"commit {'1' * 40}\nAuthor: Ann Writer <ann@example.org>\nDate:   Wed Feb 28 02:41:36 2024 +0000\n\n"
    )
    return f"{head}    tea: Keep the lid on\n    \n    Tea cools.\n\n{o.diff()}"


def git_log(o: Original) -> str:
    other = f"commit {'2' * 40}\nAuthor: X <x@example.org>\nDate:   Wed Feb 28\n\n    Y\n\n{FOREIGN}\n"
    return other + git_show(o)


def web_page(o: Original) -> str:
    lines = [f'<span\nclass="add">{html.escape(line)}</span>' for line in (BODY + o.diff()).split("\n")]
    return f"<!DOCTYPE html><html><body><pre>Subject: {SUBJECT}\n" + "\n".join(lines) + "</pre></body></html>"


def tabbed(o: Original) -> str:
    """The indentation that the archive lost, put back: a tab, and two blanks for one."""
    bodies = [
        [(sign, "\t" + text.replace(" ", "  ") if text else "") for sign, text in body] for body in o.bodies
    ]
    return o._replace(bodies=bodies).diff()


def pasted(o: Original) -> str:
    return "Look at this:\n\n" + "\n".join(f"    {line}" for line in o.diff().split("\n"))


def moved(o: Original) -> str:
    headers = [re.sub(r"\d+,(\d+)", r"77,\1", header) for header in o.headers]
    return o._replace(headers=headers).diff()


def exported(o: Original, several: bool = False) -> str:
    """JSON as Patchwork's interface gives it: an object for a patch, a list for several."""
    row = {
        "id": 1,
        "name": SUBJECT,
        "msgid": "<5-ann@example.org>",
        "submitter": {"name": "Ann"},
        "diff": o.diff(),
    }
    return json.dumps([row | {"diff": FOREIGN}, row] if several else row)


def attached_as_bytes(o: Original) -> str:
    data = base64.encodebytes(o.diff().encode()).decode()
    return (
        'Subject: a fix\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="XX"\n\n--XX\nContent-Type: '
        f"text/plain\n\nattached\n--XX\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"
        f"{data}\n--XX--\n"
    )


def page_of_blanks(o: Original) -> str:
    lines = (html.escape(line).replace(" ", "&nbsp;") for line in o.diff().split("\n"))
    return "<html><body><div>" + "<br>".join(lines) + "</div></body></html>"


def numbered_lines(o: Original) -> str:
    return "".join(f"{n:6}\t{line}\n" for n, line in enumerate(o.diff().split("\n"), 1))


FORMS = {
    "plain diff": Original.diff,
    "leading blanks lost": lambda o: o.diff(blank=""),
    "tabs and double blanks": tabbed,
    "format-patch": format_patch,
    "git show": git_show,
    "git log": git_log,
    "pasted with an indent": pasted,
    "other line numbers": moved,
    "reply": reply,
    "reply, 3 deep": lambda o: reply(o, "> > > ", 3),
    "reply, 3 deep, tight": lambda o: reply(o, ">>>", 3),
    "reply with comments": commented,
    "CRLF": lambda o: format_patch(o).replace("\n", "\r\n"),
    "base64": lambda o: encoded(o, "base64"),
    "quoted-printable": lambda o: encoded(o, "quoted-printable"),
    "attachment": attached,
    "mailbox": mailbox,
    "mailbox of a series": series,
    "web page": web_page,
    "gzip": lambda o: gzip.compress(mailbox(o).encode()),
    "UTF-16": lambda o: git_show(o).encode("utf-16"),
    "UTF-8 with a mark": lambda o: git_show(o).encode("utf-8-sig"),
    "UTF-16 without a mark": lambda o: git_show(o).encode("utf-16-le"),
    "UTF-32": lambda o: git_show(o).encode("utf-32"),
    "carriage returns alone": lambda o: o.diff().replace("\n", "\r"),
    "zstd": lambda o: pa.compress(mailbox(o).encode(), codec="zstd", asbytes=True),
    "Patchwork's export": exported,
    "Patchwork's export of a series": lambda o: exported(o, several=True),
    "an attachment of no kind": attached_as_bytes,
    "a page of hard blanks": page_of_blanks,
    "a page that begins with a mail": lambda o: (
        f"<html><body><pre>From:{html.escape(o.diff())}</pre></body></html>"
    ),
    "numbered": numbered_lines,
    "marks of no width": lambda o: "\n".join(f"\u200b{line}" for line in o.diff().split("\n")),
    "escapes written out": lambda o: re.sub(r"(?m)^([+-].*)$", r"^[[32m\1^[[m", o.diff()),
    "rejected hunks": lambda o: re.sub(
        r"(?m)^diff --git (\S+) (\S+)\nindex .*\n---.*\n\+\+\+.*$", r"diff \1 \2\t(rejected hunks)", o.diff()
    ),
    "blanks at the ends of lines lost": lambda o: re.sub(r"(?m)[ \t]+$", "", o.diff()),
    "Mercurial": lambda o: (
        "# HG changeset patch\n# User a\n"
        + re.sub(r"(?m)^diff --git a/(\S+) \S+\nindex .*$", r"diff -r 1234567890ab \1", o.diff())
    ),
}


def saved(content: str | bytes, folder: Path) -> Path:
    path = folder / "saved.patch"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("form", FORMS)
def test_form_is_this_patch(form, original, tmp_path):
    path = saved(FORMS[form](original), tmp_path)
    found = reader.read_patch(path)
    verdict = patch.identify(found)
    assert verdict.differences == ()
    assert (verdict.kind, verdict.unmatched) == ("this patch", ())
    changed = [sign for _, sign, *_ in numbered(original) if sign != " "]
    assert len(verdict.present) == len(changed)
    assert found.counts == (changed.count("+"), changed.count("-"))
    assert all(hunk.complete for hunk in found.hunks)
    text, status = patch.report(path)
    assert status == 0
    assert any(line.startswith(str(path)) and "this patch" in line for line in text.split("\n"))


@pytest.mark.parametrize(
    "form", ["format-patch", "CRLF", "base64", "quoted-printable", "attachment", "mailbox", "gzip"]
)
def test_mail_tells_who_and_what(form, original, tmp_path):
    found = reader.read_patch(saved(FORMS[form](original), tmp_path))
    assert found.subject == SUBJECT
    assert (found.version, found.part, found.quoted) == ("v3", "05/16", 0)
    assert found.author == "Ann Writer <ann@example.org>"
    assert found.message_id == "<5-ann@example.org>"
    assert found.date == "Wed, 28 Feb 2024 02:41:36 +0000"


@pytest.mark.parametrize(
    ("form", "depth"),
    [("reply", 1), ("reply, 3 deep", 3), ("reply, 3 deep, tight", 3), ("reply with comments", 2)],
)
def test_reply_tells_writer_from_sender(form, depth, original, tmp_path):
    found = reader.read_patch(saved(FORMS[form](original), tmp_path))
    assert found.quoted == depth
    assert (found.author, found.sender) == ("Ann Writer", "Bob Reader")
    assert found.subject == f"Re: {SUBJECT}"


def test_git_show_tells_author_and_title(original):
    found = reader.read_patch(git_show(original))
    assert (found.subject, found.version, found.part) == ("tea: Keep the lid on", "", "")
    assert found.author == "Ann Writer <ann@example.org>"
    assert found.date == "Wed Feb 28 02:41:36 2024 +0000"


def test_encoded_header_is_decoded(original):
    text = format_patch(original).replace("Ann Writer", "=?utf-8?q?Ann_Wr=C3=AFter?=", 1)
    assert reader.read_patch(text).author == "Ann Wrïter <ann@example.org>"


def test_a_charset_that_is_no_name_does_not_stop_the_reader(original):  # found by make fuzz, case 325
    text = format_patch(original).replace("Ann Writer", "=?utf\udcb5-8?q?Ann?= Writer", 1)
    found = reader.read_patch(text.encode(errors="surrogateescape"))
    assert patch.identify(found).kind == "this patch"


def test_unknown_charsets_do_not_stop_the_reader(original):
    text = encoded(original, "base64").replace(b"utf-8", b"klingon-1").replace(b"Ann", b"=?klingon-1?q?Ann?=")
    found = reader.read_patch(text)
    assert patch.identify(found).kind == "this patch"
    assert found.author == "=?klingon-1?q?Ann?= Writer <ann@example.org>"


def test_other_line_numbers_are_told(original):
    verdict = patch.identify(reader.read_patch(moved(original)))
    assert len(verdict.notes) == 3
    assert "-77," in verdict.notes[0]


def test_unindented_signature_does_not_lengthen_the_last_hunk(original):
    found = reader.read_patch(reply(original))
    assert len(found.hunks[2].lines) == len(original.bodies[2])


def test_text_bytes_and_path_are_the_same(original, tmp_path):
    text = format_patch(original)
    path = saved(text, tmp_path)
    hunks = reader.read_patch(text).hunks
    assert reader.read_patch(text.encode()).hunks == hunks
    assert reader.read_patch(path).hunks == reader.read_patch(str(path)).hunks == hunks


# ------------------------------------------------------------------------------------ damaged copies

SPOILED = "this line was spoiled in transit"


def judge(content: str | bytes) -> patch.Identity:
    return patch.identify(reader.read_patch(content))


def ids(original: Original) -> list[list[str]]:
    """The ledger id of each line, by hunk; "" for context."""
    counts: dict[tuple[int, str], int] = {}
    found: list[list[str]] = [[] for _ in original.bodies]
    for hunk, sign, *_ in numbered(original):
        counts[hunk, sign] = counts.get((hunk, sign), 0) + 1
        found[hunk - 1].append(f"h{hunk}{sign}{counts[hunk, sign]:02d}" if sign != " " else "")
    return found


@pytest.mark.parametrize("form", [Original.diff, reply, commented], ids=["plain", "reply", "comments"])
def test_every_changed_line_is_named(form, original):
    known = ids(original)
    for hunk, body in enumerate(original.bodies):
        for at, (sign, _) in enumerate(body):
            verdict = judge(form(original.edit(hunk, at, (sign, SPOILED))))
            first = verdict.differences[0]
            assert verdict.kind == "a damaged copy"
            assert (first.hunk, first.line, first.ledger_id) == (hunk + 1, at + 1, known[hunk][at])
            assert SPOILED in first.found
            assert (known[hunk][at] or "context line") in first.expected


@pytest.mark.parametrize("form", [Original.diff, reply], ids=["plain", "reply"])
def test_every_dropped_line_is_named(form, original):
    for hunk, body in enumerate(original.bodies):
        for at in range(len(body)):
            rest = [*body[:at], *body[at + 1 :]]
            differs = next((i for i, line in enumerate(rest) if line != body[i]), len(rest))
            verdict = judge(form(original.edit(hunk, at)))
            first = verdict.differences[0]
            trimmed = form is reply and rest == body[: len(rest)]
            assert verdict.kind == ("part of this patch" if trimmed else "a damaged copy")
            assert (first.hunk, first.line) == (hunk + 1, differs + 1)
            assert f"hunk {hunk + 1} is cut short" in verdict.notes or hunk + 1 == 3


@pytest.mark.parametrize("sign", ["+", "-", " "])
@pytest.mark.parametrize("form", [Original.diff, reply], ids=["plain", "reply"])
def test_every_line_too_many_is_named(form, sign, original):
    for hunk, body in enumerate(original.bodies):
        for at in range(len(body)):
            verdict = judge(form(original.edit(hunk, at, (sign, SPOILED), drop=0)))
            first = verdict.differences[0]
            assert verdict.kind == "a damaged copy"
            assert (first.hunk, first.line) == (hunk + 1, at + 1)
            assert "a line too many" in first.found or at == len(body) - 1


def identifier(o: Original) -> str:
    body = o.bodies[1]
    at = next(i for i, (sign, text) in enumerate(body) if sign == "+" and "(" in text)
    return o.edit(1, at, ("+", re.sub(r"[A-Z_]{5,}", "ANOTHER_NAME", body[at][1]))).diff()


def swapped(o: Original) -> str:
    return Original(o.before[::-1], o.headers[::-1], o.bodies[::-1]).diff()


def without(hunk: int):
    return lambda o: Original(*(column[:hunk] + column[hunk + 1 :] for column in o)).diff()


def count(change: int):
    def build(o: Original) -> str:
        header = re.sub(r"\+(\d+),(\d+)", lambda m: f"+{m[1]},{int(m[2]) + change}", o.headers[1])
        return o._replace(headers=[o.headers[0], header, o.headers[2]]).diff()

    return build


def grown(o: Original) -> str:
    header = re.sub(r"\+(\d+),(\d+)", lambda m: f"+{m[1]},{int(m[2]) + 1}", o.headers[1])
    longer = o.edit(1, len(o.bodies[1]), ("+", SPOILED), drop=0)
    return longer._replace(headers=[o.headers[0], header, o.headers[2]]).diff()


def sign_flipped(o: Original) -> str:
    at = next(i for i, (sign, _) in enumerate(o.bodies[1]) if sign == "-")
    return o.edit(1, at, ("+", o.bodies[1][at][1])).diff()


def cut(o: Original) -> str:
    lines = o.diff().split("\n")
    return "\n".join(lines[: lines.index(o.headers[1]) + 5]) + "\n"


def bad_byte(o: Original) -> bytes:
    return o.edit(2, 1, ("-", "@@@")).diff().encode().replace(b"-@@@", b"-\xff\xfe\xff")


DAMAGES = {
    "an identifier": (identifier, 2, "ANOTHER_NAME"),
    "hunks swapped": (swapped, 1, "out of order"),
    "count too large": (count(+1), 2, "the counts of"),
    "count too small": (count(-1), 2, "the counts of"),
    "a hunk grown": (grown, 2, f"expected the end of the hunk; found '+{SPOILED}'"),
    "a sign": (sign_flipped, 2, "'+"),
    "cut in hunk 2": (cut, 2, "found the end of the hunk"),
    "a hunk too many": (
        lambda o: o.diff() + "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
        4,
        "one more hunk",
    ),
    "undecodable bytes": (bad_byte, 3, "�"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage, original, tmp_path):
    build, hunk, words = DAMAGES[damage]
    path = saved(build(original), tmp_path)
    verdict = patch.identify(reader.read_patch(path))
    assert verdict.kind == "a damaged copy"
    assert verdict.differences[0].hunk == hunk
    text, status = patch.report(path)
    assert status == 1
    assert f"hunk {hunk}" in text
    assert "first difference:" in text
    assert words in text


def test_broken_header_is_a_missing_hunk(original):
    headers = [original.headers[0], original.headers[1].replace("@@ -", "@ -"), original.headers[2]]
    verdict = judge(original._replace(headers=headers).diff())
    assert verdict.kind == "a damaged copy"
    assert (verdict.differences[0].hunk, verdict.differences[0].line) == (2, 0)


def test_difference_names_ledger_row_and_symbols(posted):
    at = next(i for i, (sign, text) in enumerate(posted.bodies[1]) if sign == "+" and "WARN_ON_ONCE" in text)
    text = str(judge(posted.edit(1, at, ("+", SPOILED)).diff()).differences[0])
    assert text.startswith(f"arch/x86/kvm/mmu/mmu.c, hunk 2, line {at + 1} of it: expected h2+04 (code: ")
    assert "PFERR_SYNTHETIC_MASK" in text
    assert "new line 5847" in text
    assert text.endswith(f"found '+{SPOILED}'")


# ------------------------------------------------------------------------------------ other patches


def test_foreign_patch_opens(tmp_path):
    path = saved(FOREIGN, tmp_path)
    found = reader.read_patch(path)
    assert (found.files, found.counts) == (["arch/x86/kvm/mmu/tea.c", "tea/cup.h"], (3, 1))
    verdict = patch.identify(found)
    assert verdict.kind == "another patch"
    assert verdict.present == ()
    assert [line.text.strip() for line in verdict.unmatched][:2] == ["do_nothing(spte);", "step_one();"]
    mmio, entry, header = verdict.touched
    assert (mmio.functions, mmio.steps) == (("handle_mmio_page_fault",), ("mmio.handle_mmio_page_fault",))
    assert entry.functions == ("kvm_mmu_page_fault",)
    assert entry.steps == (
        "entry.sanitize",
        "entry.root_is_valid",
        "entry.mark_private",
        "entry.reserved_fault",
    )
    assert (header.functions, header.steps) == ((), ("bits",))
    text, status = patch.report(path)
    assert status == 1
    assert "handle_mmio_page_fault -> mmio.handle_mmio_page_fault" in text
    assert "changed lines that no ledger row knows: 4" in text


def test_patch_taken_back_leads_to_what_was_before(original):
    flip = {"+": "-", "-": "+", " ": " "}
    bodies = [[(flip[sign], text) for sign, text in body] for body in original.bodies]
    headers = [re.sub(r"-(\S+) \+(\S+)", r"-\2 +\1", header) for header in original.headers]
    verdict = judge(original._replace(headers=headers, bodies=bodies).diff())
    assert (verdict.kind, verdict.differences != ()) == ("a known relative", True)
    assert "taken back" in verdict.what
    assert verdict.revision == "before"


def test_merged_form_is_a_relative_that_holds_19_lines(posted, tmp_path):
    """As merged, hunk 1 lost its start and hunk 2 all but the look-up, three lines of its comment rewrapped.

    Source: Linux commit `b3d5dc629c32` (v6.10): 21 insertions, 2 deletions.
    """
    known = ids(posted)
    first = [
        line
        for line, id in zip(posted.bodies[0], known[0], strict=True)
        if id not in [f"h1+0{n}" for n in range(1, 6)]
    ]
    mask = first.index(posted.bodies[0][known[0].index("h1+11")])
    first.insert(mask, ("-", re.sub(r" \| \w+", "", first[mask][1])))
    sanitiser = {f"h2+0{n}" for n in range(1, 6)}
    second = []
    for line, id in zip(posted.bodies[1], known[1], strict=True):
        if id in ("h2+08", "h2+09", "h2+10"):
            second.append(("+", line[1] + " (rewrapped)"))
        elif not id.startswith("h2-") and id not in sanitiser:
            second.append(line)
    bodies = [first, second, posted.bodies[2]]
    headers = []
    for header, body in zip(posted.headers, bodies, strict=True):
        old, new = (sum(sign != other for sign, _ in body) for other in "+-")
        headers.append(re.sub(r"-(\d+),\d+ \+(\d+),\d+", rf"-\1,{old} +\2,{new}", header))
    path = saved(posted._replace(headers=headers, bodies=bodies).diff(), tmp_path)

    found = reader.read_patch(path)
    assert found.counts == (21, 2)
    verdict = patch.identify(found)
    assert verdict.kind == "a known relative"
    assert [change.status for change in verdict.changes] == ["not there", "there", "there"]
    assert verdict.revision == "merged_patch"
    gone = {
        *(f"h1+0{n}" for n in range(1, 6)),
        *sanitiser,
        "h2+08",
        "h2+09",
        "h2+10",
        *(f"h2-0{n}" for n in range(1, 8)),
    }
    assert set(verdict.present) == {id for hunk in known for id in hunk if id} - gone
    assert len(verdict.present) == 19
    text, status = patch.report(path)
    assert status == 1
    assert "as merged" in text
    assert "ledger lines found: 19 of 39" in text


def merged(posted: Original, *hunks: int) -> Original:
    """The posted patch without its sanitiser and without what the mask was before, as hunks of the merged form."""
    known = ids(posted)
    gone = {f"h1+0{n}" for n in range(1, 6)} | {f"h2+0{n}" for n in range(1, 6)}
    bodies = []
    for number, body in enumerate(posted.bodies):
        rows = zip(body, known[number], strict=True)
        bodies.append([line for line, id in rows if id not in gone and not id.startswith("h2-")])
    headers = []
    for header, body in zip(posted.headers, bodies, strict=True):
        old, new = (sum(sign != other for sign, _ in body) for other in "+-")
        headers.append(re.sub(r"-(\d+),\d+ \+(\d+),\d+", rf"-\1,{old} +\2,{new}", header))
    return only(*hunks)(posted._replace(headers=headers, bodies=bodies))


def test_a_part_of_the_merged_form_is_as_close_as_the_changes_it_makes(posted):
    whole = merged(posted, 0, 1, 2)
    mask = next(n for n, (_, text) in enumerate(whole.bodies[0]) if "SYNTHETIC" in text)
    old = ("-", re.sub(r" \| \w+", "", whole.bodies[0][mask][1]))
    first = whole.edit(0, mask, old, whole.bodies[0][mask])
    header = re.sub(r"-(\d+),(\d+)", lambda m: f"-{m[1]},{int(m[2]) + 1}", first.headers[0])
    verdict = judge(only(0, 1)(first._replace(headers=[header, *first.headers[1:]])).diff())
    assert verdict.kind == "a known relative"
    assert verdict.what.startswith("a part of this patch as merged")
    assert verdict.revision == "before+mark_private"


def test_the_merged_form_taken_back_is_told(posted):
    whole = merged(posted, 0, 1, 2)
    sides = {"+": "-", "-": "+", " ": " "}
    back = whole._replace(
        headers=[re.sub(r"-(\S+) \+(\S+)", r"-\2 +\1", header) for header in whole.headers],
        bodies=[[(sides[sign], text) for sign, text in body] for body in whole.bodies],
    )
    verdict = judge(back.diff())
    assert verdict.kind == "a known relative"
    assert verdict.what.endswith("taken back")
    assert verdict.revision == "before"


# ------------------------------------------------------------------------------------ wrapped, other context


def wrapped(o: Original, mark: str = "", width: int = 72, again: bool = True) -> str:
    """Break long lines as mailers do; the rest begins with the mark of quoting if `again`."""
    out = []
    for line in o.diff().split("\n"):
        line = mark + line
        while len(line) > width and " " in line[12:width]:
            at = line.rindex(" ", 12, width)
            out.append(line[:at])
            line = (mark if again else "") + line[at + 1 :]
        out.append(line)
    return "\n".join(out)


@pytest.mark.parametrize(("mark", "again"), [("", True), ("> ", True)])
def test_a_mailers_line_breaks_are_the_only_damage(mark, again, posted):
    verdict = judge(wrapped(posted, mark, again=again))
    assert verdict.kind == "a damaged copy"
    assert "wrapped by a mailer" in verdict.what
    assert not verdict.differences
    assert len(verdict.present) == 39
    assert verdict.revision == "posted"


def test_lines_of_other_patches_are_not_joined():
    long = "int " + "a" * 60 + ";"
    text = f"--- a/x.c\n+++ b/x.c\n@@ -1,2 +1,3 @@\n {long}\n+{long}\n int b;\nwords of mine\n"
    assert [len(line.text) for line in reader.read_patch(text).hunks[0].lines] == [65, 65, 6]


def recontexted(o: Original, keep: int, more: int = 0) -> str:
    """The same changes with at most `keep` unchanged lines around, or with `more` made-up ones."""
    out = []
    for before, header, body in zip(o.before, o.headers, o.bodies, strict=True):
        if more:
            extra = [f" int more{n};" for n in range(more)]
            counts = re.sub(r",(\d+)", lambda m: f",{int(m[1]) + 2 * more}", header.split(" @@")[0])
            out += [*before, f"{counts} @@", *extra, *(sign + text for sign, text in body), *extra]
            continue
        old, new = ([text for sign, text in body if sign != other] for other in "+-")
        out += [*before[:-2], *unified_diff(old, new, before[-2][4:], before[-1][4:], n=keep, lineterm="")]
    return "\n".join(out) + "\n"


@pytest.mark.parametrize(("keep", "more", "words"), [(0, 0, "fewer"), (1, 0, "fewer"), (3, 4, "more")])
def test_other_context_is_no_damage(keep, more, words, original):
    verdict = judge(recontexted(original, keep, more))
    assert verdict.kind == "this patch"
    assert f"with {words} unchanged lines around" in verdict.what
    assert not verdict.unmatched


def test_a_hunk_with_other_context_is_a_part(original):
    verdict = judge(recontexted(only(1)(original), 0))
    assert verdict.kind == "part of this patch"
    assert verdict.what.startswith("part of this patch: hunk 2 of 3, with fewer")


def test_a_file_more_is_no_part_of_this_patch_even_without_a_hunk(original):
    picture = (
        "diff --git a/x.png b/x.png\nindex 0000000..1111111\nBinary files /dev/null and b/x.png differ\n"
    )
    verdict = judge(picture + original.diff())
    assert verdict.kind == "a damaged copy"
    assert verdict.differences[0].found == "one more file, binary"


def with_parts(*parts: str) -> str:
    return (
        'Subject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="XX"\n\n--XX\n'
        + "\n--XX\n".join(parts)
        + "\n--XX--\n"
    )


def test_a_page_is_read_where_the_text_beside_it_says_nothing_of_a_patch(original):
    page = "Content-Type: text/html\n\n" + "".join(
        f"<div>{html.escape(line)}</div>" for line in original.diff().split("\n")
    )
    plain = "Content-Type: text/plain\n\n"
    assert judge(with_parts(plain + "see the page\n", page)).kind == "this patch"
    assert len(reader.read_patches(with_parts(plain + original.diff(), page)).patches) == 1


def test_an_archive_among_the_attachments_is_told_of(original):
    archive = (
        'Content-Type: application/zip; name="a.zip"\nContent-Transfer-Encoding: base64\n\n'
        + base64.encodebytes(b"PK\x03\x04" + bytes(40)).decode()
    )
    found = reader.read_patches(with_parts("Content-Type: text/x-patch\n\n" + original.diff(), archive))
    assert len(found.patches) == 1
    assert found.refused == ("an attachment is a zip archive; unpack it, and give the patch in it",)


def test_a_combined_diff_has_one_reason():
    text = REASONS["combined"][0]
    with pytest.raises(InputError, match="combined") as caught:
        reader.read_patches(text)
    found = reader.read_patches(f"From a@b Mon Jan  1 00:00:00 2024\nSubject: x\n\n{FOREIGN}\n"
                                f"From a@b Mon Jan  1 00:00:00 2024\nSubject: y\n\n{text}")  # fmt: skip
    assert found.refused == (str(caught.value).removeprefix("the patch: "),)


def test_a_lost_context_line_is_damage_as_before(original):
    at = next(n for n, (sign, _) in enumerate(original.bodies[1][1:-1], 1) if sign == " ")
    assert judge(original.edit(1, at).diff()).kind == "a damaged copy"


def test_what_was_cut_out_of_a_quotation_may_have_been_the_name_of_a_file(original):
    lines = original.diff().split("\n")
    second = next(n for n, line in enumerate(lines) if line == original.headers[1])
    third = next(n for n, line in enumerate(lines) if line == original.headers[2])
    text = quoted("\n".join(lines[: second - 2])) + "[...]\n" + quoted("\n".join(lines[third:]))
    verdict = judge(f"Re: {SUBJECT}\nOn Wed, Ann wrote:\n{text}")
    assert verdict.what == "part of this patch: hunks 1 and 3 of 3"


def test_steps_are_found_by_the_kernels_names():
    assert patch.steps_of("kvm_mmu_do_page_fault") == ("fault.kvm_mmu_do_page_fault",)
    assert patch.steps_of("kvm_mem_is_private") == ("attributes.kvm_mem_is_private",)
    assert patch.steps_of("npf_interception") == ("exits.npf_interception",)
    assert patch.steps_of("schedule") == ()


# ------------------------------------------------------------------------------------ what is no patch

NO_PATCH = {
    "nothing": (b"", "is empty"),
    "blanks": (b" \n\t\n", "is empty"),
    "prose": (b"Dear all,\n\nno patch today.\n", "holds no diff"),
    "a mail without a patch": ((FIELDS + "\nNo patch today.\n").encode(), "holds no diff"),
    "binary": (b"\x7fELF\x02\x01\x00\x00\n@@ -1 +1 @@\n", "is binary (a NUL byte at offset 6)"),
    "noise": (bytes(range(1, 256)), "holds no diff"),
    "broken gzip": (gzip.compress(b"x" * 100)[:-9], "cannot be unpacked"),
    "a damaged base64 body": (b"Subject: x\nContent-Transfer-Encoding: base64\n\n!!!!\n", "holds no diff"),
}


@pytest.mark.parametrize("what", NO_PATCH)
def test_no_patch_is_refused(what, tmp_path):
    content, why = NO_PATCH[what]
    path = saved(content, tmp_path)
    with pytest.raises(InputError, match=re.escape(why)) as caught:
        reader.read_patch(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert patch.report(path) == (str(caught.value), 2)


def test_missing_file_and_folder_are_refused(tmp_path):
    assert patch.report(tmp_path / "nowhere") == (
        f"{tmp_path / 'nowhere'}: cannot be read: No such file or directory",
        2,
    )
    assert patch.report(tmp_path) == (f"{tmp_path}: cannot be read: Is a directory", 2)
    with pytest.raises(InputError, match="cannot be read"):
        reader.read_patch("a\0b")


@given(st.binary(max_size=300) | st.text(alphabet="@-+ ,0123456789>ab\n", max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(content):
    try:
        found = reader.read_patch(content)
    except InputError:
        return
    assert found.hunks


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FORMS)), st.floats(0, 1), st.binary(min_size=0, max_size=6), st.integers(0, 40))
def test_any_damage_to_any_form_gets_an_answer(tmp_path_factory, form, where, noise, drop):
    content = FORMS[form](take_apart(OURS))
    raw = content if isinstance(content, bytes) else content.encode()
    at = int(where * len(raw))
    path = saved(raw[:at] + noise + raw[at + drop :], tmp_path_factory.mktemp("damage"))
    text, status = patch.report(path)
    assert status in (1, 2)
    assert text


# ------------------------------------------------------------------------------------ disguises


def renamed(o: Original, old: str, new: str, strip: int = 0, extra: str = "") -> str:
    """The patch with other prefixes on its paths and no `diff --git`, as diff, quilt and others write it."""
    before = []
    for lines in o.before:
        path = "/".join(lines[-1].removeprefix("+++ b/").split("/")[strip:])
        names = {"old": f"{old}{path}", "new": f"{new}{path}", "path": path}
        header = extra + "--- {old}\t2024-02-28\n+++ {new}\t2024-02-28"
        before.append(header.format(**names).split("\n"))
    return o._replace(before=before).diff()


def signed(o: Original) -> str:
    lines = [f"- {line}" if line.startswith("-") else line for line in (BODY + o.diff()).split("\n")]
    return (
        f"{FIELDS}\n-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + "\n".join(lines)
        + "\n-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n"
    )  # fmt: skip


def coloured(o: Original) -> str:
    colours = {"+": 32, "-": 31, "@": 36, "d": 1}
    lines = [
        f"\x1b[{colours[line[0]]}m{line}\x1b[m" if line[:1] in colours else line
        for line in o.diff().split("\n")
    ]
    return "\n".join(lines)


def graph(o: Original) -> str:
    other = "* commit " + "2" * 40 + "\n| Author: X <x@example.org>\n|\n|     Y\n|\n"
    return other + quoted(FOREIGN, "| ") + "|\n" + "* " + quoted(git_show(o), "  ").lstrip()


def with_own_diff(o: Original) -> str:
    return reply(o) + "\nHow about this on top?\n\n" + FOREIGN + "\nThanks\n"


def dep3(o: Original) -> str:
    return (
        "Description: Keep the lid on\n Tea cools.\nAuthor: Ann Writer <ann@example.org>\nOrigin: upstream\n---\n"
        + o.diff()
    )


def github(o: Original) -> str:
    first = f"From {'3' * 40} Mon Sep 17 00:00:00 2001\nFrom: X <x@example.org>\nSubject: [PATCH 1/2] Y\n\n{FOREIGN}"
    return first + "\n" + format_patch(o)


def attachment(name: str, content: bytes, kind: str = "application/octet-stream") -> str:
    part = base64.encodebytes(content).decode()
    return (
        f'From: X <x@example.org>\nSubject: see below\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\n'
        f"\n--b\nContent-Type: text/plain\n\nSee the file.\n--b\nContent-Type: {kind}\n"
        f"Content-Disposition: attachment; filename={name}\nContent-Transfer-Encoding: base64\n\n{part}\n--b--\n"
    )


def forwarded(o: Original) -> str:
    head = (
        "From: X <x@example.org>\nSubject: Fwd: see below\nMIME-Version: 1.0\nContent-Type: multipart/mixed; "
    )
    inner = format_patch(o).partition("\n")[2]
    return f'{head}boundary="b"\n\n--b\nContent-Type: message/rfc822\n\n{inner}\n--b--\n'


def html_mail(o: Original) -> str:
    body = "<br>\n".join(html.escape(line) for line in (BODY + o.diff(blank="")).split("\n"))
    return f"{FIELDS}Content-Type: text/html; charset=utf-8\n\n<div dir=ltr>{body}</div>\n"


def two_alternatives(o: Original) -> str:
    page = f"<html><pre>{html.escape(o.diff())}</pre></html>"
    return (
        f'{FIELDS}MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary="b"\n\n'
        f"--b\nContent-Type: text/plain\n\n{o.diff()}\n--b\nContent-Type: text/html\n\n{page}\n--b--\n"
    )


def under(o: Original, head: str) -> str:
    """The patch with the heads of files as another tool writes them; `head` has {path}."""
    git = r"(?m)^diff --git a/(\S+) \S+\nindex .*\n--- a/\S+\n\+\+\+ b/\S+"
    return re.sub(git, lambda found: head.format(path=found[1]), o.diff())


def flowed(o: Original, delsp: bool = False, width: int = 66) -> str:
    """A mail of `format=flowed` (RFC 3676): lines of a blank or > at first are stuffed, long ones broken at a blank."""
    lines = []
    for line in (BODY + o.diff()).split("\n"):
        rest = line.rstrip(" ")
        while True:
            rest = f" {rest}" if rest.startswith((" ", ">", "From ")) else rest
            cut = rest.rfind(" ", 2, width) if len(rest) > width else -1
            if cut < 2:
                break
            lines.append(rest[: cut + 1] + " " * delsp)
            rest = rest[cut + 1 :]
        lines.append(rest)
    more = "; delsp=yes" if delsp else ""
    return f"{FIELDS}Content-Type: text/plain; format=flowed{more}\n\n" + "\n".join(lines)


def columned(o: Original) -> str:
    """As copied from a page that shows old and new numbers beside a diff, with a tab behind each."""
    lines = []
    for before, header, body in zip(o.before, o.headers, o.bodies, strict=True):
        old, new = map(int, re.match(r"@@ -(\d+),\d+ \+(\d+),", header).groups())
        lines += [*before, header]
        for sign, text in body:
            lines.append(f"{'' if sign == '+' else old}\t{'' if sign == '-' else new}\t{sign}{text}")
            old, new = old + (sign != "+"), new + (sign != "-")
    return "\n".join(lines)


def each_line(o: Original, before: str) -> str:
    return "".join(f"{before.format(n=n)}{line}\n" for n, line in enumerate(o.diff().split("\n"), 1000))


DISGUISES = {
    "svn": lambda o: under(
        o, "Index: {path}\n" + "=" * 67 + "\n--- {path}\t(revision 1)\n+++ {path}\t(working copy)"
    ),
    "bzr": lambda o: under(
        o, "=== modified file '{path}'\n--- {path}\t2024-02-28 10:00\n+++ {path}\t2024-02-28 10:00"
    ),
    "cvs": lambda o: under(
        o,
        "Index: {path}\n" + "=" * 67 + "\nRCS file: /cvs/{path},v\nretrieving revision 1.5\ndiff -u -r1.5 x\n"
        "--- {path}\t28 Feb 2024 10:00:00 -0000\t1.5\n+++ {path}\t28 Feb 2024 10:00:00 -0000",
    ),
    "Perforce": lambda o: under(
        o,
        "==== //depot/linux/{path}#5 (text) ====\n--- //depot/linux/{path}\t2024\n+++ /ws/linux/{path}\t2024",
    ),
    "git show --stat -p": lambda o: git_show(o).replace(
        "diff --git", " a.h | 2 ++\n 3 files changed\n\ndiff --git", 1
    ),
    "git log --oneline -p": lambda o: f"b3d5dc629c32 (HEAD -> x) Tea\n{o.diff()}1234567 Y\n{FOREIGN}",
    "format=flowed": flowed,
    "format=flowed, delsp": lambda o: flowed(o, delsp=True),
    "format=flowed by name only": lambda o: (
        flowed(o, width=9999).replace("\n  ", "\n ").replace("\n \t", "\n\t")
    ),
    "a blank line behind every line": lambda o: "Hi,\n\n" + o.diff().replace("\n", "\n\n"),
    "quoted-printable that nobody says": lambda o: quopri.encodestring(
        git_show(o).replace("Tea cools", "a = b " * 30).encode()
    ),
    "base64 in a text": lambda o: "See:\n\n" + base64.encodebytes(o.diff().encode()).decode() + "\nBye\n",
    "a string of Python": lambda o: f"PATCH = {o.diff()!r}\n",
    "a string in JSON": lambda o: json.dumps({"patch": o.diff()}),
    "old and new numbers": columned,
    "in a comment": lambda o: each_line(o, "# "),
    "a log": lambda o: each_line(o, "[ {n}.25] "),
    "a chat": lambda o: each_line(o, "10:00 <ann> "),
    "markdown": lambda o: f"- so:\n\n  ```diff\n{o.diff()}  ```\n",
    "diff -ruN": lambda o: renamed(o, "linux-6.8.orig/", "linux-6.8/", extra="diff -ruN {old} {new}\n"),
    "quilt": lambda o: renamed(o, "linux.orig/", "linux/", extra="Index: linux/{path}\n" + "=" * 67 + "\n"),
    "without prefixes": lambda o: renamed(o, "", ""),
    "mnemonic prefixes": lambda o: renamed(o, "i/", "w/", extra="diff --git {old} {new}\n"),
    "in a folder": lambda o: renamed(o, "a/src/linux/", "b/src/linux/"),
    "from inside a folder": lambda o: renamed(o, "a/", "b/", strip=1),
    "beside the original": lambda o: renamed(o, "", "", strip=1).replace("\t2024", ".orig\t2024", 1),
    "absolute paths": lambda o: renamed(o, "/src/linux.orig/", "/src/linux/"),
    "quoted with initials": lambda o: reply(o, "AW> "),
    "quoted with bars": lambda o: reply(o, "| "),
    "quoted, in colour": lambda o: quoted(coloured(o)),
    "signed": signed,
    "colour": coloured,
    "git log --graph": graph,
    "with an own diff": with_own_diff,
    "DEP-3": dep3,
    "two patches of a pull request": github,
    "an mbox attached": lambda o: attachment("t.mbox", format_patch(o).encode(), "application/mbox"),
    "a text attached": lambda o: attachment("tea.patch.txt", o.diff().encode()),
    "a packed file attached": lambda o: attachment("tea.patch.gz", gzip.compress(o.diff().encode())),
    "forwarded": forwarded,
    "HTML mail": html_mail,
    "text and HTML": two_alternatives,
    "a fragment": lambda o: f"<pre>{html.escape(o.diff())}</pre>",
    "a comment first": lambda o: f"<!-- x > y -->\n<!--X-->\n<html><pre>{html.escape(o.diff())}</pre></html>",
    "entities": lambda o: "Look:\n\n" + html.escape(reply(o)),
    "entities of a diff that is not quoted": lambda o: "Look:\n\n" + html.escape(o.diff()),
    "xz": lambda o: lzma.compress(git_show(o).encode()),
    "bzip2": lambda o: bz2.compress(git_show(o).encode()),
    "twice packed": lambda o: gzip.compress(lzma.compress(git_show(o).encode())),
    "base64 as a whole": lambda o: base64.encodebytes(format_patch(o).encode()),
}


@pytest.mark.parametrize("form", DISGUISES)
def test_disguise_is_this_patch(form, original, tmp_path):
    path = saved(DISGUISES[form](original), tmp_path)
    verdicts = [patch.identify(found) for found in reader.read_patches(path).patches]
    assert sum(verdict.kind == "this patch" for verdict in verdicts) == 1
    assert all(verdict.kind == "another patch" for verdict in verdicts if verdict.kind != "this patch")
    assert patch.identify(reader.read_patch(path)).kind == "this patch"
    text, status = patch.report(path)
    assert status == 0
    assert "this patch" in text


def test_renamed_file_is_no_disguise(original):
    names = [
        line.rsplit("/", 1)[1] for before in original.before for line in before if line.startswith("+++")
    ]
    text = original.diff()
    for name in names:
        text = text.replace(name, f"x{name}")
    assert judge(text).kind == "another patch"


# ------------------------------------------------------------------------------------ several, and parts


def test_each_diff_of_a_reply_has_its_line(original, tmp_path):
    path = saved(with_own_diff(original), tmp_path)
    found = reader.read_patches(path)
    assert [(part.quoted, part.author) for part in found.patches] == [(1, "Ann Writer"), (0, "Bob Reader")]
    text, status = patch.report(path)
    assert status == 0
    first, second = text.split("\n")[:2]
    assert "diff 1 of 2: this patch, quoted, 3 files" in first
    assert "diff 2 of 2: another patch, 2 files +3 -1" in second


def test_each_depth_of_quoting_is_a_diff_of_its_own(original):
    text = (
        quoted("On Mon, X wrote:\n" + quoted(original.diff(blank="")) + "\nRather:\n\n" + FOREIGN) + "\nNo.\n"
    )
    assert [found.quoted for found in reader.read_patches(text).patches] == [2, 1]


def test_each_commit_has_its_subject_and_author():
    found = reader.read_patches(git_log(take_apart(OURS)))
    assert [(part.subject, part.author) for part in found.patches] == [
        ("Y", "X <x@example.org>"),
        ("tea: Keep the lid on", "Ann Writer <ann@example.org>"),
    ]
    found = reader.read_patches(series(take_apart(OURS)))
    assert [part.subject for part in found.patches] == ["[PATCH 04/16] Y", SUBJECT, "[PATCH 04/16] Y"]


def test_forwarded_mail_keeps_its_own_subject_and_author():
    found = reader.read_patch(forwarded(take_apart(OURS)))
    assert (found.subject, found.author) == (SUBJECT, "Ann Writer <ann@example.org>")


def test_two_diffs_one_after_the_other_are_two(original):
    assert len(reader.read_patches(original.diff() + "\n" + original.diff()).patches) == 2


def only(*hunks: int):
    return lambda o: Original(*([column[hunk] for hunk in hunks] for column in o))


@pytest.mark.parametrize("form", [Original.diff, reply, format_patch], ids=["plain", "reply", "mail"])
@pytest.mark.parametrize(
    ("hunks", "words"),
    [
        ((0,), "hunk 1 of 3"),
        ((1,), "hunk 2 of 3"),
        ((2,), "hunk 3 of 3"),
        ((0, 1), "hunks 1 and 2 of 3"),
        ((0, 2), "hunks 1 and 3 of 3"),
        ((1, 2), "hunks 2 and 3 of 3"),
    ],
)
def test_part_is_named_by_its_hunks(form, hunks, words, original, tmp_path):
    path = saved(form(only(*hunks)(original)), tmp_path)
    found = reader.read_patch(path)
    verdict = patch.identify(found)
    assert (verdict.kind, verdict.what) == ("part of this patch", f"part of this patch: {words}")
    assert verdict.places == tuple(hunk + 1 for hunk in hunks)
    assert [touched.hunk for touched in verdict.touched] == [hunk + 1 for hunk in hunks]
    assert verdict.unmatched == ()
    steps = {0: [], 1: ["sanitize", "mark_private"], 2: ["is_private"]}
    made = [step for hunk in hunks for step in steps[hunk]]
    assert [change.step for change in verdict.changes if change.status == "there"] == made
    assert verdict.revision == ("posted" if len(made) == 3 else "+".join(["before", *made]))
    text, status = patch.report(path)
    assert status == 1
    assert f"    hunk {hunks[0] + 1}: " in text


def test_trimmed_quotation_is_part_and_says_how_much(original):
    body = quoted("On Mon, Ann Writer wrote:\n> x\n" + only(1)(original).diff(blank="")).split("\n")
    start = next(i for i, line in enumerate(body) if "@@ -" in line)
    text = "\n".join(body[: start + 6]) + "\n\nWhy?\n\nThanks,\nBob\n"
    verdict = judge(text)
    total = len(original.bodies[1])
    assert verdict.what == f"part of this patch: hunk 2 of 3; of hunk 2 the first 5 of {total} lines"


@pytest.mark.parametrize("mark", ["[...]", "...", "[snip]"])
def test_quotation_trimmed_in_the_middle_is_part(mark, original):
    body = only(1)(original).diff(blank="").split("\n")
    start = next(i for i, line in enumerate(body) if line.startswith("@@ -"))
    text = quoted("\n".join([*body[: start + 4], mark, *body[start + 9 :]]))
    total = len(original.bodies[1])
    for trimmed in (text, text.replace(f"> {mark}", mark)):
        what = judge(trimmed).what
        assert what == f"part of this patch: hunk 2 of 3; of hunk 2 the first 3 of {total} lines"


@pytest.mark.parametrize("hunk", [0, 1, 2])
def test_hunk_without_a_file_is_known_by_its_lines(hunk, original):
    text = only(hunk)(original)._replace(before=[[]]).diff(blank="")
    for form in (text, quoted("On Mon, X wrote:\n" + text)):
        assert judge(form).what == f"part of this patch: hunk {hunk + 1} of 3"


def test_damaged_part_has_one_numbering(original):
    part = only(1, 2)(original.edit(2, 1, ("-", SPOILED)))
    for text in (part.diff(), reply(part)):
        verdict = judge(text)
        assert verdict.kind == "a damaged copy"
        assert (verdict.differences[0].hunk, verdict.differences[0].line) == (3, 2)
        assert "of the posted patch's 3 hunks not there: 1" in verdict.notes
        assert [touched.hunk for touched in verdict.touched] == [2, 3]


def test_damage_leaves_the_other_changes_as_the_closest_revision(original):
    at = next(i for i, (sign, _) in enumerate(original.bodies[2]) if sign == "-")
    verdict = judge(original.edit(2, at, ("-", SPOILED)).diff())
    assert [(change.step, change.status) for change in verdict.changes] == [
        ("sanitize", "there"),
        ("mark_private", "there"),
        ("is_private", "in part"),
    ]
    assert verdict.revision == "before+sanitize+mark_private"
    assert verdict.revision in REVISIONS


# ------------------------------------------------------------------------------------ relatives

ROWS = tables.relatives()


def some_patch(subject: str = "Y", fields: str = "", blob: str = "", sha: str = "2" * 40) -> str:
    diff = FOREIGN.replace("\n---", f"\nindex {blob} 100644\n---", 1) if blob else FOREIGN
    head = f"From {sha} Mon Sep 17 00:00:00 2001\nFrom: X <x@example.org>\n{fields}Subject: {subject}\n\n"
    return f"{head}Words.\n---\n{diff}"


def test_relatives_are_told_apart_by_what_they_go_by():
    assert len(ROWS) == 19
    for column in ("messages", "blobs"):
        names = [name for row in ROWS for name in getattr(row, column)]
        assert len(names) == len(set(names))
    commits = [row.commit for row in ROWS if row.commit]
    assert len(commits) == len(set(commits)) == 17
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits)
    assert all(row.revision in REVISIONS for row in ROWS)
    assert all(re.fullmatch("[0-9a-f]{16}|", row.title) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_relative_is_known_by_each_of_its_names(row):
    texts = [some_patch(fields=f"Message-ID: <{name}>\n") for name in row.messages]
    texts += [some_patch(blob=blob) for blob in row.blobs]
    texts += [some_patch(blob="..".join(name[:9] for name in blob.split(".."))) for blob in row.blobs]
    if row.commit:
        texts += [some_patch(sha=row.commit)]
        texts += [f"commit {row.commit[:12]}\nAuthor: X <x@example.org>\n\n    Y\n\n{FOREIGN}"]
    for text in texts:
        verdict = judge(text)
        assert (verdict.kind, verdict.revision) == ("a known relative", row.revision)
        assert verdict.what.startswith(row.what)


def test_reply_to_a_relative_is_about_it_and_an_own_diff_is_not():
    name = next(row for row in ROWS if row.name == "series-08")
    head = f"From: Bob <b@example.org>\nSubject: Re: [PATCH 08/16] Y\nReferences: <cover> <{name.messages[0]}>\n\n"
    text = (
        head + "On Mon, X wrote:\n" + quoted(FOREIGN) + "\nHow about:\n\n" + FOREIGN.replace("tea.c", "pot.c")
    )
    kinds = [patch.identify(found).kind for found in reader.read_patches(text).patches]
    assert kinds == ["a known relative", "another patch"]


def test_title_alone_is_said_to_be_the_evidence():
    title = "KVM: x86: Move synthetic PFERR_* sanity checks to SVM's #NPF handler"
    for subject in (f"[PATCH 07/16] {title}", f"[PATCH v2 4/17] {title}"):
        verdict = judge(some_patch(subject))
        assert verdict.kind == "a known relative"
        assert "(by its title)" in verdict.what
    assert judge(some_patch(f"[PATCH 07/16] {title}s")).kind == "another patch"


BORROWS = """\
--- a/{mmu}/mmu.c
+++ b/{mmu}/mmu.c
@@ -5846,3 +5846,5 @@ int noinline kvm_mmu_page_fault(struct kvm_vcpu *vcpu, gpa_t cr2_or_gpa, u64 err
 one
+if (private(vcpu))
+error_code |= PFERR_GUEST_ENC_MASK;
 two
 three
--- a/{mmu}/mmu_internal.h
+++ b/{mmu}/mmu_internal.h
@@ -290,2 +290,3 @@ static inline int kvm_mmu_do_page_fault(struct kvm_vcpu *vcpu, gpa_t cr2_or_gpa,
 one
+.is_private = {gate}err & PFERR_GUEST_ENC_MASK,
 two
"""


@pytest.mark.parametrize(
    ("gate", "revision"),
    [
        ("", "guest_enc_ungated"),
        ("vcpu->kvm->arch.has_private_mem && ", "guest_enc_gated"),
        ("kvm_arch_has_private_mem(vcpu->kvm) &&\n+", "guest_enc_gated"),
    ],
)
def test_borrowed_bit_is_recognised_by_what_it_does(gate, revision):
    text = (
        BORROWS.replace("{mmu}", "arch/x86/kvm/mmu")
        .replace("{gate}", gate)
        .replace("-290,2 +290,3", f"-290,2 +290,{3 + gate.count(chr(10))}")
    )
    verdict = judge(text)
    assert (verdict.kind, verdict.revision) == ("a known relative", revision)
    assert [(change.step, change.status) for change in verdict.changes] == [
        ("sanitize", "not there"),
        ("mark_private", "with AMD's encryption bit instead"),
        ("is_private", "with AMD's encryption bit instead"),
    ]


@pytest.mark.parametrize(
    ("marks", "reads"),
    [
        ("error_code |= BIT_ULL(34);", ".is_private = !!(err & BIT_ULL(34)),"),
        (
            "error_code = error_code | PFERR_GUEST_ENC_MASK;",
            "fault.is_private = (err & PFERR_GUEST_ENC_MASK) != 0;",
        ),
        ("error_code |= BIT_ULL(PFERR_GUEST_ENC_BIT);", ".is_private = err & BIT_ULL(PFERR_GUEST_ENC_BIT),"),
        (
            "error_code |= PFERR_SECRET;",
            "#define PFERR_SECRET BIT_ULL(34)\n+.is_private = err & PFERR_SECRET,",
        ),
        ("error_code |= 1ULL << 34;", ".is_private = err & (1ULL << 34),"),
    ],
)
def test_borrowed_bit_is_recognised_by_any_name(marks, reads):
    text = (
        BORROWS.replace("{mmu}", "arch/x86/kvm/mmu")
        .replace("error_code |= PFERR_GUEST_ENC_MASK;", marks)
        .replace(".is_private = {gate}err & PFERR_GUEST_ENC_MASK,", reads)
        .replace("-290,2 +290,3", f"-290,2 +290,{3 + reads.count(chr(10))}")
    )
    verdict = judge(text)
    assert (verdict.kind, verdict.revision) == ("a known relative", "guest_enc_ungated")
    assert [change.status for change in verdict.changes[1:]] == ["with AMD's encryption bit instead"] * 2


def test_another_bit_is_not_taken_for_the_borrowed_one():
    text = (
        BORROWS.replace("{mmu}", "arch/x86/kvm/mmu")
        .replace("{gate}", "")
        .replace("PFERR_GUEST_ENC_MASK", "BIT_ULL(35)")
    )
    assert judge(text).revision != "guest_enc_ungated"


# ------------------------------------------------------------------------------------ what is not read

CONTEXT = (
    "*** a/x.c\t2024\n--- b/x.c\t2024\n***************\n*** 1,3 ****\n  one\n! old\n  three\n--- 1,3 ----\n"
)
REASONS = {
    "combined": (
        "diff --cc x/a.c\n--- a/x/a.c\n+++ b/x/a.c\n@@@ -1,3 -1,3 +1,4 @@@\n  one\n +two\n",
        "combined diff",
    ),
    "range-diff": (
        "1:  1111111 ! 1:  2222222 x: y\n    @@ Commit message\n    -    old\n    +    new\n",
        "range-diff",
    ),
    "quoted range-diff": ("> -:  ------- > 3:  22222222 x: y\n", "range-diff"),
    "context diff": (CONTEXT, "context diff"),
    "without context": ("3c3\n< old\n---\n> new\n", "without context"),
    "word diff": ("one [-old-]{+new+} three\n", "word diff"),
    "diffstat": (" x/a.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n", "summary"),
    "zip": (b"PK\x03\x04aaaa", "zip"),
    "zstd, damaged": (b"\x28\xb5\x2f\xfdaaaa", "zstd"),
    "tar": (b"0001.patch" + bytes(247) + b"ustar\x00" + bytes(250), "a tar archive"),
    "word diff, a word a line": (
        "--- a/x.c\n+++ b/x.c\n@@ -1,2 +1,2 @@\n one\n-old\n+new\n~\n two\n~\n",
        "word diff",
    ),
    "script for ed": ("3,4c\nnew\n.\n", "script for an editor"),
    "script for RCS": ("d3 1\na3 1\nnew\n", "script for an editor"),
    "two columns": (
        "int one_and_some_more;      \t|\tint two;\nint three_and_some_more;    \t|\tint four;\n",
        "two columns",
    ),
    "merge conflict": ("<<<<<<< HEAD\none\n=======\ntwo\n>>>>>>> other\n", "merge conflict"),
    "a table of a page": (
        '<html><table><tr><td class="blob-code blob-code-addition">+ int a;</td></tr>\n</table></html>',
        "as a table",
    ),
    "uuencode": ("begin 644 x.patch\n#:6$*\n`\nend\n", "uuencode"),
    "a bundle": ("# v2 git bundle\n1234 refs/heads/x\n", "bundle of git"),
    "a commit's name": ("b3d5dc629c32f03d6ae0ddff628a67d999b723e0\n", "the name of a mail or commit alone"),
    "a link": ("https://lore.kernel.org/r/x@y\n", "the name of a mail or commit alone"),
    "a Message-ID": ("<x-1-y@example.org>\n", "the name of a mail or commit alone"),
    "a request to pull": ("The following changes since commit abc:\n\n  x\n", "request to pull"),
    "what git said": (
        "error: patch failed: x/a.c:12\nerror: x/a.c: patch does not apply\n",
        "what git or patch said",
    ),
    "what checkpatch said": ("#57: FILE: x/a.c:12:\n+\tx\n\ntotal: 0 errors, 1 warnings\n", "checkpatch"),
    "git blame": ("b3d5dc629c32f (Ann Writer 2024-05-07 10:00:00 -0700 71) \tint a;\n", "git blame"),
    "diff-so-fancy": ("────\nmodified: x/a.c\n────\n@ a.c:12 @\n int a;\n", "diff-so-fancy"),
    "delta": (
        "diff --git a/x.c b/x.c\n--- a/x.c\n+++ b/x.c\n@@ -1,2 +1,2 @@\n 1 ⋮ 1 │one\n 2 ⋮   │two\n   ⋮ 2 │three\n",
        "have lost their signs",
    ),
    "a header alone": (
        "diff --git a/x.c b/x.c\nindex 1111111..2222222 100644\n--- a/x.c\n+++ b/x.c\n",
        "no hunk of it",
    ),
}


@pytest.mark.parametrize("form", REASONS)
def test_form_that_is_not_read_has_its_own_reason(form):
    content, why = REASONS[form]
    with pytest.raises(InputError, match=why):
        reader.read_patches(content)


def test_reason_stands_beside_what_was_read(original, tmp_path):
    path = saved(original.diff() + "\n" + REASONS["combined"][0], tmp_path)
    text, status = patch.report(path)
    assert (status, "not read: a combined diff" in text) == (0, True)


FIELD = {
    "p01": [("another patch", ["x/a.c", "x/b.c"], 1), ("another patch", ["x/c.c"], 0)],
    "p03a": [("another patch", ["arch/x86/include/asm/kvm_host.h"], 0)],
    "p03b": [("another patch", ["arch/x86/include/asm/kvm_host.h"], 0)],
    "p04": [("another patch", ["x/b.c"], 0)],
    "p05": [("another patch", ["x/s.sh"], 0)],
    "p06": [("another patch", ["x/p.png"], 0)],
    "p07": [("another patch", ["x/e"], 0)],
    "p08": [("another patch", ["x/a.c", "y/b.h", "x/p.png"], 0)],
    "p09": [("another patch", ["x/a.c"], 0)],
    "p11": "combined diff",
    "p12": [("another patch", ["x/a.c"], 0)],
    "p13": [("another patch", ["x/a.c", "x/b.c"], 0)],
    "p15": [("another patch", ["x/a.c", "x/b.c"], 0)],
    "p16": [("another patch", ["x/a.c", "x/b.c"], 0)],
    "p18": [("another patch", ["x/a.c"], 0)],
    "p19": [("another patch", ["x/a.c", "x/b.c"], 0)],
    "p20": [("another patch", ["x/a.c", "x/b.c"], 1)],
    "p22": [("another patch", ["x/a.c", "x/b.c"], 0)],
    "p25": "range-diff",
}
"""Each file of shared/field/patches: its diffs (verdict, files, depth of quoting), or why it is not read."""


@pytest.mark.shared
def test_every_patch_from_the_field_is_answered(shared):
    paths = sorted((shared / "field" / "patches").iterdir())
    assert {path.name.split("-")[0] for path in paths} >= set(FIELD)
    for path in paths:
        expected = FIELD.get(path.name.split("-")[0])
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected):
                reader.read_patches(path)
        elif expected:
            found = [
                (patch.identify(each).kind, each.files, each.quoted)
                for each in reader.read_patches(path).patches
            ]
            assert found == expected, path.name


# ------------------------------------------------------------------------------------ files changed without a hunk


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("similarity index 100%\nrename from x/a\nrename to x/b\n", "renamed from x/a"),
        ("old mode 100644\nnew mode 100755\n", "of another mode"),
        ("index 1111111..2222222 100644\nBinary files a/x/a and b/x/b differ\n", "binary"),
        (
            "new file mode 100644\nindex 0000000..1111111\nGIT binary patch\nliteral 5\nMcmZQzWMT#Y01f~L\n",
            "binary",
        ),
        ("new file mode 100644\nindex 0000000..e69de29\n", "new and empty"),
        ("deleted file mode 100644\nindex e69de29..0000000\n", "deleted"),
    ],
)
def test_file_without_hunks_is_counted_alone_and_beside_others(lines, what):
    text = f"diff --git a/x/a b/x/b\n{lines}"
    assert reader.read_patch(text).others == (("x/b", what),)
    beside = reader.read_patch(f"{FOREIGN}{text}{FOREIGN.replace('tea', 'pot')}")
    assert len(beside.files) == 5
    assert beside.others == (("x/b", what),)
    assert len(beside.hunks) == 6


@given(st.data())
def test_hunks_are_those_of_another_reader(data):
    """Diffs made by difflib of any two texts are read as unidiff reads them."""
    words = st.lists(
        st.sampled_from(["a", "b", "", "-", "+", "- c", "++ d", " e", "\tf", "@", "> g"]), max_size=14
    )
    diff = ""
    for file in ("x/a.c", "x/b.c"):
        old, new = data.draw(words), data.draw(words)
        diff += "".join(
            f"{line}\n" for line in unified_diff(old, new, f"a/{file}", f"b/{file}", lineterm="", n=2)
        )
    if not diff:
        return
    expected = [
        (
            file.path,
            hunk.source_start,
            hunk.source_length,
            hunk.target_start,
            hunk.target_length,
            str(hunk).split("\n")[1:-1],
        )
        for file in PatchSet(diff)
        for hunk in file
    ]
    for text, depth in ((diff, 0), (quoted("On Mon, X wrote:\n" + diff).replace("\n>\n", "\n> \n"), 1)):
        (found,) = reader.read_patches(text).patches
        assert found.quoted == depth
        assert [
            (hunk.file, *hunk.span, [line.sign + line.text for line in hunk.lines]) for hunk in found.hunks
        ] == expected


# ------------------------------------------------------------------------------------ hostile input


@pytest.mark.parametrize(
    "subject",
    [
        "[patch" * 60_000,
        "[" * 300_000,
        "Re: " * 90_000 + "[patch]",
        "[patch " + "1" * 300_000 + "/",
        "v" + "1" * 300_000,
        "=?utf-8?q?a?= " * 30_000,
        "x\nMIME-Version: 1.0\nContent-Type: text/plain" + ";" * 300_000,
    ],
    ids=["patch", "brackets", "replies", "digits", "version", "encoded words", "parameters"],
)
def test_long_subjects_are_read_at_once(subject):
    start = time.process_time()
    reader.read_patches(f"From: X <x@example.org>\nSubject: {subject}\n\n{FOREIGN}")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "line",
    ["> " * 150_000, " " * 300_000, "@@ -1" * 60_000, "<" * 300_000, "<!--" * 75_000, "&lt;" * 75_000, "[-" * 150_000,
     "1" * 300_000, "On x, " + " " * 300_000, "a>" * 150_000, "\x1b[" * 150_000, "diff --git " * 30_000,
     "multipart/" * 30_000, "A" * 60 + "\n" * 300_000 + "!", " |\t" * 100_000, "1a\n" * 30_000,
     "&lt;&#" + "9" * 5000],
    ids=lambda line: line[:6],
)  # fmt: skip
def test_long_lines_are_read_at_once(line):
    start = time.process_time()
    for text in (f"{line}\n{FOREIGN}", f"{FOREIGN}{line}\n", f"<pre>{line}\n{FOREIGN}", f"{line}\n"):
        with suppress(InputError):
            reader.read_patches(text)
    assert time.process_time() - start < 6


def test_deep_parts_are_refused():
    for depth in (20, 300, 3000):
        heads = "".join(f'Content-Type: multipart/mixed; boundary="b{n}"\n\n--b{n}\n' for n in range(depth))
        with pytest.raises(InputError, match=r"MIME parts"):
            reader.read_patches(
                f"Subject: x\nMIME-Version: 1.0\n{heads}Content-Type: text/plain\n\n{FOREIGN}"
            )


def test_parts_within_parts_are_not_compared_with_every_line():
    heads = "".join(f'Content-Type: multipart/mixed; boundary="b{n}"\n\n--b{n}\n' for n in range(300))
    start = time.process_time()
    with pytest.raises(InputError, match="too many lines for its MIME parts"):
        reader.read_patches(
            f"Subject: x\nMIME-Version: 1.0\n{heads}Content-Type: text/plain\n" + "\n" * 900_000
        )
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n" * 32_769 + "x", "32,768 lines"),
        ("@@ -1 +1 @@\n-a\n+b\n" * 2049, "2,048 hunks"),
        ("--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n" * 257, "256 diffs"),
    ],
    ids=["lines", "hunks", "diffs"],
)
def test_what_takes_long_is_limited(text, said, monkeypatch):
    monkeypatch.setattr(reader, "LIMIT", 1 << 20)
    with pytest.raises(InputError, match=f"has more than {said}.*--limit raises that"):
        reader.read_patches(text, limit=1 << 20)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_bombs_are_refused_and_the_limit_is_named(pack):
    with pytest.raises(InputError, match=r"unpacks to more than 1,000,000 bytes"):
        reader.read_patches(pack(b"x\n" * 600_000), limit=1_000_000)
    with pytest.raises(InputError, match=r"is larger than 1,000 bytes"):
        reader.read_patches("x\n" * 600, limit=1000)


def test_bomb_attached_is_named_beside_what_was_read():
    bomb = gzip.compress(b"x\n" * 600_000)
    text = attachment("tea.patch.gz", bomb).replace("See the file.", FOREIGN)
    found = reader.read_patches(text, limit=1_000_000)
    assert len(found.patches) == 1
    assert found.refused == (
        "an attachment unpacks to more than 1,000,000 bytes; a patch was expected (--limit raises that)",
    )


def test_attachments_share_one_limit():
    packed = base64.encodebytes(gzip.compress(b"x\n" * 300_000)).decode()
    one = (
        "--b\nContent-Type: application/gzip\nContent-Disposition: attachment; filename=x.gz\n"
        f"Content-Transfer-Encoding: base64\n\n{packed}\n"
    )
    head = 'Subject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\n\n'
    with pytest.raises(InputError, match="an attachment unpacks to more than 1,000,000 bytes"):
        reader.read_patches(head + one * 2 + "--b--\n", limit=1_000_000)
    with pytest.raises(InputError, match="holds no diff"):
        reader.read_patches(head + one + "--b--\n", limit=1_000_000)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file; to read from a pipe give -"):
            reader.read_patches(path)


HOSTILE = "\x1b[2J\x1b]0;x\x07\u202e\u2066\x9b\x85\x00"


def test_nothing_of_others_reaches_the_terminal_raw(tmp_path):
    bad = HOSTILE.replace("\x00", "")
    text = (
        f"From: {bad}X <x@example.org>\nSubject: [PATCH 1/{bad}2] {bad}\nMessage-ID: <{bad}>\nDate: {bad}\n\n"
    )
    diff = (
        FOREIGN.replace("tea.c", f"{bad}tea.c")
        .replace("do_nothing", f"do{bad}nothing")
        .replace("static", bad)
    )
    path = saved(text + diff + f"diff --git a/{bad} b/{bad}\nold mode 100644\nnew mode 100755\n", tmp_path)
    shown, status = patch.report(path)
    assert status == 1
    assert not [c for c in shown if c != "\n" and not (c.isprintable() or c == " ")]
    named = tmp_path / "a\x1b[2Jb"
    assert "\x1b" not in patch.report(named)[0]
    named.write_text(FOREIGN)
    assert "\x1b" not in patch.report(named)[0]


@pytest.mark.parametrize("wrong", [None, 1, ["x"], object()])
def test_wrong_types_are_input_errors(wrong):
    for call in (reader.read_patch, reader.read_patches, patch.identify):
        with pytest.raises(InputError):
            call(wrong)


PIECES = (
    "diff --git a/x b/x\n", "--- a/x\n", "+++ b/x\n", "@@ -1,3 +1,4 @@\n", "@@ -1 +1 @@ f(\n", "> ", "| ", "+a\n",
    "-b\n", " c\n", "\n", "commit " + "1" * 40 + "\n", "From " + "1" * 40 + " Mon\n", "Subject: [PATCH] x\n",
    "Index: x\n", "rename from x\n", "Binary files x\n", "<pre>", "&lt;", "-----BEGIN PGP SIGNED MESSAGE-----\n",
    "index 1111111..2222222\n",
    "* ", "|\\", "@@@ -1 -1 +1 @@@\n", "1:  1111111 ! 1:  2222222 x\n", "Content-Type: multipart/mixed; boundary=b\n\n",
    "--b\n", "Content-Type: application/mbox\n\n", "On x, y wrote:\n", "\x1b[1m", "\\ No newline at end of file\n",
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40))
def test_any_pieces_are_read_or_refused(pieces):
    try:
        found = reader.read_patches("\n" + "".join(pieces))
    except InputError:
        return
    for each in found.patches:
        assert each.hunks or each.others
        assert patch.identify(each).kind != "this patch"


# ------------------------------------------------------------------------------------ the command


def command(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kvm_pf", "patch", *args], input=stdin, capture_output=True, check=False
    )


def test_command_reads_several_files_and_standard_input(tmp_path):
    (tmp_path / "one.patch").write_text(FOREIGN)
    (tmp_path / "two.eml").write_text("From: X\nSubject: [PATCH] y\n\n" + FOREIGN)
    done = command(
        str(tmp_path / "one.patch"), "-", str(tmp_path / "two.eml"), stdin=gzip.compress(FOREIGN.encode())
    )
    out = done.stdout.decode()
    assert done.returncode == 1
    assert [line.split(": ")[0] for line in out.split("\n") if ": another patch" in line] == [
        str(tmp_path / "one.patch"),
        "standard input",
        str(tmp_path / "two.eml"),
    ]
    done = command(str(tmp_path / "one.patch"), str(tmp_path / "none.patch"))
    assert done.returncode == 2
    assert b"another patch" in done.stdout
    assert done.stderr.count(b"\n") == 1
    assert b"none.patch: cannot be read" in done.stderr
    assert command("-", "-").returncode == 2


def test_command_says_this_patch_with_status_0(mail, tmp_path):
    (tmp_path / "mail").write_text(mail)
    (tmp_path / "other").write_text(FOREIGN)
    assert command(str(tmp_path / "mail")).returncode == 0
    assert command("-", stdin=mail.encode()).returncode == 0
    assert command(str(tmp_path / "mail"), str(tmp_path / "other")).returncode == 1


# --- context diffs ---


def as_context(hunks):
    """Write hunks as diff -c does: both sides, one below the other."""
    rows, file = [], ""
    for hunk in hunks:
        if hunk.file != file:
            file = hunk.file
            rows += [f"*** a/{file}\t2024-02-28", f"--- b/{file}\t2024-02-28"]
        span = hunk.span
        rows += [f"***************{hunk.section and ' '}{hunk.section.strip()}"]
        rows += [f"*** {span.old},{span.old + span.old_count - 1} ****"]
        rows += [f"{line.sign} {line.text}" for line in hunk.lines if line.sign != "+"]
        rows += [f"--- {span.new},{span.new + span.new_count - 1} ----"]
        rows += [f"{line.sign} {line.text}" for line in hunk.lines if line.sign != "-"]
    return "\n".join(rows) + "\n"


def test_the_patch_as_a_context_diff_is_this_patch(original, tmp_path):
    (found,) = reader.read_patches(original.diff()).patches
    text = as_context(found.hunks)
    (again,) = reader.read_patches(text).patches
    assert [hunk.lines for hunk in again.hunks] == [hunk.lines for hunk in found.hunks]
    said, status = patch.report(saved(text, tmp_path))
    assert (status, "this patch" in said) == (0, True)


@given(st.lists(st.sampled_from("abc"), max_size=14), st.lists(st.sampled_from("abc"), max_size=14))
@settings(max_examples=150, deadline=None)
def test_a_context_diff_is_read_as_the_unified_one(old, new):
    texts = [
        "\n".join(form(old, new, "a/x.c", "b/x.c", lineterm=""))
        for form in (difflib.context_diff, difflib.unified_diff)
    ]
    if old == new:
        return
    (one,), (other,) = (reader.read_patches(text + "\n").patches for text in texts)
    changed = [
        [(line.sign, line.old, line.new, line.text) for hunk in each.hunks for line in hunk.lines]
        for each in (one, other)
    ]
    assert changed[0] == changed[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "@@ -400,3 +400,4 @@ static int other(void)\n \tint a;\n+\tint more;\n \treturn a;\n }\n",
            "1 hunk in ",
        ),
        (FOREIGN, "3 hunks in arch/x86/kvm/mmu/tea.c, tea/cup.h"),
    ],
)
def test_the_whole_patch_and_more_is_not_called_damaged(more, words, original):
    found = patch.identify(reader.read_patch(original.diff() + more))
    assert found.what.startswith(f"this patch whole, and more with it: {words}")
    assert found.kind != "this patch"
    assert len(found.present) == sum(sign != " " for body in original.bodies for sign, _ in body)


def test_what_is_no_disguise_is_left_alone():
    for text in (
        "a == b\n", "x = y =3D\n", "\\n@@ - is no hunk\n", "diff --git a/x b/x\n\n\n@@ -1,1 +1,1 @@\n-a\n+b\n",
    ):  # fmt: skip
        assert restored(text) == text
    mail = "Hello \nWorld\n\n@@ -1,2 +1,2 @@\n context\n-old\n+new \n"
    assert unflowed(mail) == mail  # the blank before "context" would have been doubled
