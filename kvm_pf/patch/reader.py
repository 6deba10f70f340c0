# SPDX-License-Identifier: GPL-2.0-only
"""Finding diffs in what people have: mails, replies, mailboxes, pages, logs, files, packed or not.

A file is undone layer by layer: compression, encoding, mail or page, until there are texts, each of one
message or commit (`_texts`).  A text is walked line by line (`_Walk`): each diff in it, at any depth of quoting,
becomes one Patch, and each form that is recognised but not read becomes a reason.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs
import email
import gzip
import html
import io
import json
import lzma
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.policy import Compat32
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import archive_of, as_path
from kvm_pf.common.text import visible
from kvm_pf.common.typed import typed
from kvm_pf.patch import LIMIT
from kvm_pf.patch.context import as_unified
from kvm_pf.patch.ledger import Span, digest, posted
from kvm_pf.patch.restore import packed_inside, restored, unflowed

__all__ = ("LIMIT", "FileChange", "Found", "Hunk", "Line", "Patch", "Span", "read_patch", "read_patches")

LAYERS = 12
"""How many layers of packing and how many levels of MIME parts are undone at most."""

DEPTH = 20
"""How deep a diff may be quoted."""

HEAD = 5000
"""In how many lines before the first diff of a message its fields are looked for."""

PARTS = 2000
"""How many MIME parts a message may have at most."""

LONGEST = 4000
"""How many characters of a header of a mail, and of a line that is asked for its form, are read."""

SCANNED = 50_000_000
"""How many lines times multiparts a message may have: the library compares each with the ends of all around it."""

SEARCHED = 1 << 20
"""In how much of a text without a diff the form is looked for of what stands there in its place."""


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


class FileChange(NamedTuple):
    """A file that a patch changes without a hunk: renamed, binary, of another mode, empty; `what` says which."""

    file: str
    what: str


UNREAD = "without a hunk that can be read"
"""What is said of a file that a diff names and shows no change of."""


class Patch(NamedTuple):
    """A patch as it was found; what was not found is "".

    `source` is the file's name, `quoted` the number of marks before each line.  `author` wrote the patch,
    `sender` the reply that quotes it; `date` and `message_id` are those of the mail or commit.  `others` are
    the files changed without a hunk, `blobs` the "old..new" of the `index` lines, `known_as` the Message-IDs
    and commits by which the patch itself, not a reply to it, goes.  `wrapped` says that its long lines stood on
    several, and were joined.
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
    others: tuple[FileChange, ...] = ()
    blobs: tuple[str, ...] = ()
    known_as: tuple[str, ...] = ()
    wrapped: bool = False

    @property
    def files(self) -> list[str]:
        """The files it changes, each once: those with hunks first, in its order."""
        return list(dict.fromkeys([hunk.file for hunk in self.hunks] + [other.file for other in self.others]))

    @property
    def counts(self) -> tuple[int, int]:
        """The number of lines added and of lines removed."""
        signs = [line.sign for hunk in self.hunks for line in hunk.lines]
        return signs.count("+"), signs.count("-")


class Found(NamedTuple):
    """What a file holds: its name, its patches in order, and why anything like a patch in it was not read."""

    source: str
    patches: tuple[Patch, ...]
    refused: tuple[str, ...]


@typed()
def read_patches(source: str | bytes | Path, limit: int = LIMIT) -> Found:
    """Read every diff of a file, wherever it stands.

    That may be a mail or its attachments, a mailbox, a page of a web archive or its text, a reply that quotes
    a patch and adds its own, the output of `git format-patch`, `git show` or `git log`, a plain diff.  `source` is
    a path, "-" for standard input, or the content itself: bytes, or text of more than one line.  Base64,
    quoted-printable, HTML, colour, CRLF, UTF-16, gzip, bzip2, xz and zstd are undone; at most `limit` bytes are read,
    and unpacked.  With the usual limit, or less, that is 2,097,152 lines, 131,072 hunks and 16,384 diffs at most;
    a higher one raises these as well.

    Raises InputError, naming the file and why, if it cannot be read or holds no diff.
    """
    name, raw = _load(source, limit)
    patches: list[Patch] = []
    refused: list[str] = []
    lines = hunks = 0
    try:
        for text in _texts(raw, name, _Budget(limit)):
            if isinstance(text, InputError):
                refused.append(f"an attachment {str(text).removeprefix(name).lstrip(': ')}")
                continue
            lines += text.count("\n")
            _bound(name, limit, 32, lines, "lines")
            some, reasons = _read_text(text, name)
            patches += some
            refused += reasons
            hunks += sum(len(patch.hunks) for patch in some)
            _bound(name, limit, 512, hunks, "hunks")
            _bound(name, limit, 4096, len(patches), "diffs")
    except RecursionError:
        raise InputError(
            f"{name}: its MIME parts are nested too deep; save the part with the patch alone"
        ) from None
    refused = list(dict.fromkeys(refused))
    if not patches:
        raise InputError(f"{name}: {refused[0] if refused else _NO_DIFF}")
    return Found(name, tuple(patches), tuple(refused))


def _bound(name: str, limit: int, each: int, count: int, what: str) -> None:
    """Raise InputError for more lines, hunks or diffs than one for `each` bytes that may be read."""
    if count > (most := max(limit, LIMIT) // each):
        raise InputError(f"{name}: has more than {most:,} {what}; a patch was expected (--limit raises that)")


@typed()
def read_patch(source: str | bytes | Path, limit: int = LIMIT) -> Patch:
    """Read one patch: of several the one most like the posted patch, else the first; `source` as in `read_patches`.

    Raises InputError, naming the file and why, if it cannot be read or holds no diff.
    """
    return max(read_patches(source, limit).patches, key=likeness)


def likeness(patch: Patch) -> tuple[bool, int]:
    """Count the lines of a patch that the posted patch has too, less those that it has not."""
    rows = _telling_rows()
    lines = [(line.sign, digest(line.text)) in rows for hunk in patch.hunks for line in hunk.lines]
    return any(lines), 2 * sum(lines) - len(lines) if any(lines) else 0


@cache
def _telling_rows() -> set[tuple[str, str]]:
    """The signs and digests of the posted patch's lines, empty ones left out."""
    return {(line.sign, line.digest) for hunk in posted() for line in hunk.lines if line.digest != digest("")}


_NO_DIFF = "holds no diff; a patch has lines such as @@ -267,7 +267,18 @@"

# ------------------------------------------------------------------------------------------------ bytes


def _load(source: str | bytes | Path, limit: int) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        name, raw = "the patch", source
    elif isinstance(source, str) and "\n" in source:
        name, raw = "the patch", source.encode(errors="replace")
    elif isinstance(source, str | Path):
        name, raw = ("standard input" if str(source) == "-" else visible(source)), _read(source, limit)
    else:
        raise InputError(f"a patch is a path, text or bytes, not {type(source).__name__}")
    if len(raw) > limit:
        raise InputError(
            f"{name}: is larger than {limit:,} bytes; a patch was expected (--limit raises that)"
        )
    return name, raw


def _read(source: str | Path, limit: int) -> bytes:
    """Read a regular file, or standard input, but no more than one byte over the limit."""
    try:
        if str(source) == "-":
            if sys.stdin is None:
                raise InputError("standard input: it is closed")
            return sys.stdin.buffer.read(limit + 1)
        path = as_path(source, "a patch")
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(
                f"{visible(source)}: is not a regular file; to read from a pipe give - and redirect it"
            )
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{visible(source)}: cannot be read: {why}") from None


_Unpack = Callable[[bytes, int], bytes]


def _zstd(raw: bytes, most: int) -> bytes:
    """Unpack zstd: with Apache Arrow, which the standard library lacks."""
    try:
        import pyarrow as pa
    except ImportError:
        raise ValueError("it is packed with zstd, which takes pyarrow to unpack") from None
    try:
        return bytes(pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read(most))
    except OSError as error:
        raise ValueError(f"zstd: {error}") from None


_PACKED: dict[bytes, _Unpack] = {
    b"\x1f\x8b": lambda raw, most: gzip.GzipFile(fileobj=io.BytesIO(raw)).read(most),
    b"BZh": lambda raw, most: bz2.BZ2Decompressor().decompress(raw, most),
    b"\xfd7zXZ\x00": lambda raw, most: lzma.LZMADecompressor(memlimit=4 * LIMIT).decompress(raw, most),
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""How a packed file begins, and what unpacks as many bytes of it as are asked for."""


class _Budget:
    """How many bytes may be unpacked of a whole file, its attachments included, and how many are left."""

    def __init__(self, limit: int) -> None:
        self.limit = self.left = limit


def _unpack(raw: bytes, name: str, budget: _Budget) -> bytes:
    """Undo compression, as often as there is any."""
    for _ in range(LAYERS):
        unpack = next((how for start, how in _PACKED.items() if raw.startswith(start)), None)
        if unpack is None:
            break
        try:
            raw = unpack(raw, budget.left + 1)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{name}: cannot be unpacked: {error}") from None
        if len(raw) > budget.left:
            raise InputError(
                f"{name}: unpacks to more than {budget.limit:,} bytes; a patch was expected (--limit raises that)"
            )
        budget.left -= len(raw)
    if archive := archive_of(raw):
        raise InputError(f"{name}: is {archive}; unpack it, and give the patch in it")
    return raw


def _wide(raw: bytes) -> str:
    """Say in which encoding of several bytes a letter a text is, "" if in none: by its mark, or by its zeros."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    ):  # fmt: skip
        if raw.startswith(mark):
            return encoding
    head = raw[:400]
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if len(zeros) > 3 and zeros.count(0) > 0.9 * len(zeros) and 2 * head.count(0) < 1.2 * len(head):
            return encoding
    return ""


# ------------------------------------------------------------------------------------------------ layers

_MAIL = re.compile(rb"(?:From .*\n)?(?:[!-9;-~]+:.*\n(?:[ \t].*\n)*)+\n")
_MBOX = re.compile(rb"^(?=From \S+ .*\d\d:\d\d:\d\d)", re.MULTILINE)
_COMMIT = re.compile(
    r"^(?=[|\\/_* ]*commit [0-9a-f]{40}\b|From [0-9a-f]{40} \S|"
    r"[|\\/_* ]*commit [0-9a-f]{7,39}(?: \(.*\))?\n[|\\/_* ]*(?:Author|Merge|Date):|"
    r"[0-9a-f]{7,40} \S.*\n\n?diff --git )",
    re.MULTILINE,
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/\n]{60,}={0,2}")
_PAGE = re.compile(r"\s*<(?:!doctype|html|head|body|pre|div|span|table|p|\?xml|!--)[ \t\n>/-]", re.IGNORECASE)
_TABLE = re.compile(r'class="[^"]{0,99}\bblob-code|data-code-marker=')
_BREAK = re.compile(r"<(?:br\b[^<>]*|/(?:div|p|tr|li))>\n?", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|#\d{1,6}|#x[0-9a-f]{1,5});", re.IGNORECASE)
_LONG_ENTITY = re.compile(r"&#(?=[0-9]{9})")
_COLOUR = re.compile(r"(?:\x1b|\^\[)\[[0-9;]{0,40}[mK]")


def _texts(raw: bytes, name: str, budget: _Budget, layer: int = 0) -> Iterator[str | InputError]:
    """Undo the packing and yield the text of each message, attachment or commit."""
    raw = _unpack(raw, name, budget)
    if encoding := _wide(raw):
        raw = raw.decode(encoding, errors="replace").encode(errors="replace")
    raw = raw.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    if b"\n" not in raw:
        raw = raw.replace(b"\r", b"\n")
    if not raw.strip():
        raise InputError(f"{name}: is empty; a patch was expected")
    if (offset := raw.find(b"\0")) >= 0:
        raise InputError(f"{name}: is binary (a NUL byte at offset {offset}); a patch is text")
    if layer < LAYERS and _BASE64.fullmatch(raw.strip()):
        with suppress(binascii.Error, InputError):
            yield from list(_texts(base64.b64decode(raw), name, budget, layer + 1))
            return
    page = _PAGE.match(raw[:200].decode(errors="replace"))
    if not page and _MAIL.match(raw):
        for message in filter(None, _MBOX.split(raw)):
            yield from _mail(message, name, budget, layer)
        return
    text = raw.decode(errors="replace")
    if text[:1] in "{[" and '"diff"' in text and (exported := _exported(text)):
        yield from exported
        return
    if page and _TABLE.search(text):
        raise InputError(
            f"{name}: a page that shows a diff as a table; its address with .diff or .patch at the end gives the diff"
        )
    text = _unnumbered(_plain(text) if page else _COLOUR.sub("", text))
    yield from filter(None, map(_ungraphed, _COMMIT.split(text)))


def _exported(text: str) -> list[str]:
    """Take the patches out of JSON as Patchwork exports it: each with its diff, its name and its writer."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return []
    rows = rows if isinstance(rows, list) else [rows]
    found = []
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("diff"), str):
            writer = row.get("submitter")
            fields = {
                "Subject": row.get("name"), "Date": row.get("date"), "Message-ID": row.get("msgid"),
                "From": writer.get("name") if isinstance(writer, dict) else None,
            }  # fmt: skip
            head = "".join(f"{key}: {_header(value)}\n" for key, value in fields.items() if value)
            found.append(f"{head}\n{row['diff']}")
    return found


_NUMBERED = re.compile(r"^[ \t]{0,9}(\d{1,6})(?:[:|]|[ \t])[ \t]?", re.MULTILINE)


def _unnumbered(text: str) -> str:
    """Undo the numbers that stand before every line, as of `cat -n` and of pages."""
    numbers = [int(found[1]) for found in _NUMBERED.finditer(text[:2000])]
    lines = text[:2000].count("\n")
    if len(numbers) < max(5, lines - 1) or any(b != a + 1 for a, b in pairwise(numbers)):
        return text
    return _NUMBERED.sub("", text)


def _ungraphed(text: str) -> str:
    """Undo the lines that `git log --graph` draws to the left of a commit."""
    width = len(text) - len(text.lstrip("|\\/_* "))
    if not (text[width : width + 7] == "commit " and text[:width].strip()):
        return text
    return "\n".join(line[width:] if not line[:width].strip("|\\/_* ") else line for line in text.split("\n"))


def _plain(page: str) -> str:
    """Take the text out of a page, or a fragment of one."""
    start, *comments = page.split("<!--")
    page = start + "".join(comment.partition("-->")[2] for comment in comments)
    return _unescaped(re.sub(r"<[^<>]*>", "", _BREAK.sub("\n", page)))


def _unescaped(text: str) -> str:
    """Undo entities, but for numbers that are no character's and longer than Python reads."""
    return html.unescape(_LONG_ENTITY.sub("&amp;#", text))


def _mail(raw: bytes, name: str, budget: _Budget, layer: int) -> Iterator[str | InputError]:
    """Turn a message into plain texts, each the headers that matter and one of the parts that may hold a patch."""
    if raw.lower().count(b"multipart/") > PARTS:
        raise InputError(
            f"{name}: a message in it has over {PARTS} MIME parts; save the one with the patch alone"
        )
    if raw.count(b"multipart/") * raw.count(b"\n") > SCANNED:
        raise InputError(
            f"{name}: a message in it has too many lines for its MIME parts; save the one with the patch alone"
        )
    commit = re.match(rb"From ([0-9a-f]{40}) ", raw)
    before = f"Commit: {commit[1].decode()}\n" if commit else ""
    parts = list(_parts(email.message_from_bytes(raw, policy=_Bounded()), name))
    plain = any(_is_read_plain(part) for part, _ in parts)
    for part, message in parts:
        head = before + _fields(message)
        kind, file = part.get_content_type(), _file_name(part)
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes) or not payload.strip():
            continue
        if kind == "text/html" and not file:
            if not plain:
                yield head + _plain(_decode(payload, part).replace("\r\n", "\n"))
        elif kind.startswith("text/"):
            yield from _inside(_decode(payload, part).encode(errors="replace"), head, name, budget, layer)
        elif archive := archive_of(payload):
            yield InputError(f"{name}: is {archive}; unpack it, and give the patch in it")
        elif (
            file.endswith(_PATCHES)
            or _has_diff(payload)
            or kind in ("application/mbox", "application/x-patch")
        ):
            yield from _inside(payload, head, name, budget, layer)


class _Bounded(Compat32):
    """The reading of mails, with headers of bounded length: the library takes the square of it for some."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:LONGEST]


def _is_read_plain(part: Message) -> bool:
    """Say whether a part is plain text, so that a page beside it is not read; not if it says nothing of a patch."""
    if part.get_content_type() != "text/plain":
        return False
    payload = part.get_payload(decode=True)
    return not isinstance(payload, bytes) or _STARTS.search(payload.decode(errors="replace")) is not None


def _has_diff(payload: bytes) -> bool:
    """Say whether an attachment of no kind that is known holds a diff."""
    return b"\0" not in payload and re.search(rb"^(?:diff --git |@@ -\d)", payload, re.MULTILINE) is not None


_PATCHES = (".patch", ".diff", ".txt", ".mbox", ".mbx", ".eml", ".gz", ".xz", ".bz2", ".zst")


def _inside(payload: bytes, head: str, name: str, budget: _Budget, layer: int) -> Iterator[str | InputError]:
    """Yield the texts of one part; one that is no mail of its own has the headers of the mail around it."""
    if (
        payload.startswith(tuple(_PACKED))
        or _MBOX.match(payload)
        or re.match(rb"commit [0-9a-f]{40}\b", payload)
    ):
        if layer < LAYERS:
            try:
                yield from list(_texts(payload, name, budget, layer + 1))
            except InputError as error:
                yield error
        return
    yield head + payload.decode(errors="replace").replace("\r\n", "\n")


def _fields(message: Message) -> str:
    """Write the headers of a message that matter, and an empty line."""
    names = ("Subject", "Re", "From", "Date", "Message-ID", "In-Reply-To", "References")
    return "".join(f"{name}: {_header(message[name])}\n" for name in names if message[name]) + "\n"


def _parts(message: Message, name: str) -> Iterator[tuple[Message, Message]]:
    """Yield the parts of a message that have no parts, in order, and the message that each is of."""
    waiting = [(message, message, 0)]
    for _ in range(PARTS):
        if not waiting:
            return
        part, owner, level = waiting.pop()
        inner = part.get_payload()
        if not (part.is_multipart() and isinstance(inner, list)):
            yield part, owner
        elif level >= LAYERS:
            raise InputError(
                f"{name}: its MIME parts are nested over {LAYERS} deep; save the part with the patch alone"
            )
        else:
            forwarded = part.get_content_type() == "message/rfc822"
            each = [each for each in inner if isinstance(each, Message)]
            waiting += [(child, child if forwarded else owner, level + 1) for child in reversed(each)]
    if waiting:
        raise InputError(
            f"{name}: a message in it has over {PARTS} MIME parts; save the one with the patch alone"
        )


_MALFORMED = (MessageError, ValueError, LookupError, TypeError, AttributeError)
"""What the library raises for headers, and parameters in them, that are malformed."""


def _header(value: object) -> str:
    with suppress(*_MALFORMED):
        value = make_header(decode_header(str(value)[:LONGEST]))
    return " ".join(str(value).split())


def _file_name(part: Message) -> str:
    with suppress(*_MALFORMED):
        return (part.get_filename() or "").lower()
    return ""


def _decode(payload: bytes, part: Message) -> str:
    text = payload.decode(errors="replace")
    with suppress(*_MALFORMED):
        text = payload.decode(part.get_content_charset("utf-8"), errors="replace")
        if str(part.get_param("format")).lower() == "flowed":
            text = unflowed(text.replace("\r\n", "\n"), str(part.get_param("delsp")).lower() == "yes")
    return text


# ------------------------------------------------------------------------------------------------ one text


def _read_text(text: str, name: str) -> tuple[list[Patch], list[str]]:
    """Read the patches of one message or commit; with its entities undone if more can be read so."""
    text = restored(_undashed(_COLOUR.sub("", text)))
    text = text if text.isascii() else text.translate(_INVISIBLE)
    walk = _Walk(text, name)
    if _ENTITY.search(text):
        other = _Walk(_unescaped(_BREAK.sub("\n", text)), name)
        if (other.worth(), _alike(other)) > (walk.worth(), _alike(walk)):
            walk = other
    patches = walk.patches()
    alike = len(walk.text) < LONGEST_JOINED and any(likeness(patch)[0] for patch in patches)
    if alike and not any(map(_is_known, patches)):
        joined = _Walk(_joined(walk.text), name).patches()
        if any(map(_is_known, joined)):
            patches = [patch._replace(wrapped=True) if _is_known(patch) else patch for patch in joined]
    if not patches and (inside := packed_inside(text)):
        return _read_text(inside, name)
    signless = [
        patch for patch in patches
        if patch.hunks and not patch.others and not patch.quoted and patch.counts == (0, 0)
    ]  # fmt: skip
    patches = [patch for patch in patches if patch not in signless]
    return patches, [*walk.refused, *([_SIGNLESS] if signless else [])]


_SIGNLESS = (
    "the lines of its hunks have lost their signs (+ and -), as where a page or a tool such as delta shows a diff in "
    "colours; give the diff itself"
)


def _alike(walk: _Walk) -> int:
    """Count the lines of all diffs that the posted patch has too, less those that it has not."""
    return sum(likeness(patch)[1] for patch in walk.patches())


def _is_known(patch: Patch) -> bool:
    """Say whether every line of a patch is one of the posted patch's, in whole hunks."""
    count = sum(len(hunk.lines) for hunk in patch.hunks)
    blank = sum(not line.text.strip() for hunk in patch.hunks for line in hunk.lines)
    whole = patch.hunks and all(hunk.complete for hunk in patch.hunks)
    return bool(whole) and likeness(patch)[1] >= count - 2 * blank > 0


_INVISIBLE = {0x200B: "", 0xFEFF: "", 0xA0: " "}
"""What pages and word processors put beside or in the place of blanks."""

LONGEST_JOINED = 1 << 20
"""How long a text is at most of which lines are joined that a mailer may have wrapped."""

WIDE = 50
"""How long a line is at least that a mailer wraps."""


def _joined(text: str) -> str:
    """Join to a long line of a hunk the next one if it cannot be one of a hunk: a mailer wrapped them."""
    lines: list[str] = []
    inside, margin = False, _margin((), 0)
    for line in text.split("\n"):
        start = _START.match(line)
        if start:
            inside = start["what"] == "@@ -"
            marks = tuple(_MARK.findall(start["quote"]))[:DEPTH]
            margin = _margin(marks, 1 if marks else 0)
        quote = margin.match(line)
        rest = line[quote.end() :] if quote else line
        if lines and re.match(rf"{_QUOTE}diff --git \S+$", lines[-1]) and re.match(r"\S+$", rest):
            lines[-1] = f"{lines[-1]} {rest}"
            continue
        whole = bool(start) or rest[:1] in ("", "+", "-") or rest.startswith((" ", "\t", "\\ No newline"))
        if inside and lines and not whole and WIDE <= len(lines[-1]) <= 8 * WIDE:
            lines[-1] = f"{lines[-1].rstrip()} {rest}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _undashed(text: str) -> str:
    """Undo the dashes that OpenPGP puts before lines that begin with one, between its own marks."""
    before, mark, signed = text.partition("-----BEGIN PGP SIGNED MESSAGE-----\n")
    if not mark:
        return text
    signed, _, after = signed.partition("\n-----BEGIN PGP SIGNATURE-----")
    return before + "\n".join(line.removeprefix("- ") for line in signed.split("\n")) + "\n" + after


_QUOTE = rf"(?P<quote>(?:[ \t]{{0,80}}[A-Za-z]{{0,4}}[>|]){{0,{DEPTH}}}[ \t]{{0,80}})"
_NUMBERS = r"-(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))?"
_HUNK = re.compile(rf"{_QUOTE}@@ {_NUMBERS} @@ ?(?P<section>.*)$")
_BEGINS = rf"{_QUOTE}(?P<what>diff --git |diff --cc |diff --combined |diff -|Index: |--- \S|@@ -)"
_START, _STARTS = re.compile(_BEGINS), re.compile(rf"^{_BEGINS}", re.MULTILINE)
_HEADER = ("diff --git ", "diff -", "Index: ", "--- ", "@@ -")
_MARK = re.compile(r"[ \t]*([A-Za-z]{0,4}[>|])")
_EXTENDED = {
    "rename from ": "renamed from {}",
    "copy from ": "copied from {}",
    "old mode ": "of another mode",
    "new file mode ": "new and empty",
    "deleted file mode ": "deleted",
    "Binary files ": "binary",
    "GIT binary patch": "binary",
}
"""Lines between `diff --git` and the hunks, and what a file without hunks is that has one; the last wins."""

_TRIMMED = ("...", "…", "[...]", "[…]", "[snip]", "<snip>", "[cut]", "(...)")
"""What a replier leaves where a part of a hunk was cut out."""

_WORDS = re.compile(r"\[-[^][\n]*-\]|\{\+[^{}\n]*\+\}|^~$", re.MULTILINE)
"""Marks of a word diff, whose hunks have no lines that are added or removed."""

_REASONS = (
    (
        re.compile(rf"^{_QUOTE}(?:diff --cc |diff --combined |@@@ -)", re.MULTILINE),
        "a combined diff of a merge stands against several parents at once; show it against one (git show -m)",
    ),
    (
        re.compile(
            r"^[> \t]*(?:\d{1,6}|-): {1,9}(?:[0-9a-f]{7,40}|-{7,40}) [!=<>] {1,9}(?:\d{1,6}|-): ",
            re.MULTILINE,
        ),
        "a range-diff compares two series of patches; give the patches themselves",
    ),
    (
        re.compile(
            rf"^{_QUOTE}\*{{15}}.*\n{_QUOTE.replace('quote', 'next')}\*\*\* \d+(?:,\d+)? \*{{4}}",
            re.MULTILINE,
        ),
        "a context diff (diff -c) that is quoted or damaged is not read; make it anew with diff -u",
    ),
    (
        re.compile(r"^\d+(?:,\d+)?[acd]\d+(?:,\d+)?\n(?:[<>] |[<>]$)", re.MULTILINE),
        "a diff without context names neither files nor neighbouring lines; make it anew with diff -u",
    ),
    (
        _WORDS,
        "a word diff marks words, not lines; make it anew without --word-diff",
    ),
    (
        re.compile(r"^\d+(?:,\d+)?[acd]\n(?:[^\n]*\n){1,200}?\.$|^[ad]\d+ \d+$", re.MULTILINE),
        "a script for an editor (diff -e, -n) names neither files nor what was there; make it anew with diff -u",
    ),
    (
        re.compile(r"(?:^.{20,}[ \t][|<>]\t.*\n){2}", re.MULTILINE),
        "a diff in two columns (diff -y) names no files; make it anew with diff -u",
    ),
    (
        re.compile(r"^begin(?:-base64)? [0-7]{3} \S+\n", re.MULTILINE),
        "a file in uuencode; unpack it (uudecode)",
    ),
    (
        re.compile(r"^# v\d git bundle\n"),
        "a bundle of git; fetch from it, and give git format-patch's output",
    ),
    (
        re.compile(
            r"^are available in the Git repository at:|^The following changes since commit ", re.MULTILINE
        ),
        "a request to pull, which holds no diff; fetch what it names, and give git log -p",
    ),
    (
        re.compile(r"^error: patch failed: |: patch does not apply$|^Hunk #\d+ FAILED at ", re.MULTILINE),
        "what git or patch said of a patch; give the patch",
    ),
    (
        re.compile(r"^total: \d+ errors?, \d+ warnings?|^#\d+: FILE: ", re.MULTILINE),
        "what checkpatch said of a patch; give the patch",
    ),
    (
        re.compile(r"^\^?[0-9a-f]{7,40} \(.{1,60} \d{4}-\d\d-\d\d.{0,40}\d+\) ", re.MULTILINE),
        "the output of git blame is no diff",
    ),
    (
        re.compile(r"\A\s*(?:<[^<>\s]+@[^<>\s]+>|https?://\S+|(?:commit )?[0-9a-f]{7,40}\b[^\n]*)\s*\Z"),
        "the name of a mail or commit alone; give the mail (b4 mbox, or its raw form) or the commit (git show)",
    ),
    (
        re.compile(r"^[ ─]*\n?modified: \S+\n─", re.MULTILINE),
        "a diff as diff-so-fancy shows it, without its signs; give the diff itself",
    ),
    (
        re.compile(r"^<{7} .*\n(?:(?!<{7} ).*\n){0,200}?={7}\n", re.MULTILINE),
        "marks of a merge conflict are no diff",
    ),
)
"""Forms that are recognised and not read, and why."""

_HEAD_OF_FILE = re.compile(
    rf"^{_QUOTE}(?:diff --git \S|--- \S.*\n{_QUOTE.replace('quote', 'next')}\+\+\+ \S)", re.MULTILINE
)
_HEADER_ALONE = (
    "names a file, and has no hunk of it: lines such as @@ -267,7 +267,18 @@ and those behind are missing"
)
"""Why a text with the head of a file, and nothing else that could be read or told, is not read."""

_DIFFSTAT = re.compile(r"^[> \t]*\d+ files? changed\b", re.MULTILINE)


class _File:
    """One file of a diff as it is being read."""

    def __init__(self, name: str) -> None:
        self.name, self.what, self.mentioned = name, "", False
        self.hunks: list[Hunk] = []


class _Diff:
    """One diff as it is being read: its marks of quoting, the text's lines before it, its files."""

    def __init__(self, marks: tuple[str, ...], at: int) -> None:
        self.marks, self.at = marks, at
        self.files: list[_File] = []
        self.done: set[str] = set()
        self.blobs: list[str] = []
        self.end = at

    def changes(self) -> bool:
        """Say whether a line is added or removed, or a file changed otherwise."""
        return any(file.what or any(hunk.changed for hunk in file.hunks) for file in self.files)

    def open(self) -> _File:
        """Return the file that is being read, one without a name if there is none."""
        if not self.files:
            self.files.append(_File(""))
        return self.files[-1]


class _Walk:
    """A walk through the lines of one text, which collects its diffs and the reasons for what is not read."""

    def __init__(self, text: str, name: str) -> None:
        text = as_unified(text)
        self.text, self.name = text, name
        self.lines = text.removesuffix("\n").split("\n")
        self.diffs: list[_Diff] = []
        self.current: dict[tuple[str, ...], _Diff] = {}
        self.at = 0
        for at in self._starts():
            if at >= self.at:
                self.at = at
                self._step()
        self.diffs = [diff for diff in self.diffs if any(file.hunks or file.what for file in diff.files)]
        if _WORDS.search(text):
            every = re.search(r"^~$", text, re.MULTILINE) is not None  # words on lines of their own
            self.diffs = [diff for diff in self.diffs if diff.changes() and not every]
        clipped = "\n".join(line[:LONGEST] for line in text[:SEARCHED].split("\n"))
        self.refused = [
            why for form, why in _REASONS[: None if not self.diffs else 3] if form.search(clipped)
        ]
        if not self.diffs and not self.refused and _HEAD_OF_FILE.search(clipped):
            self.refused = [_HEADER_ALONE]
        if not self.diffs and not self.refused and _DIFFSTAT.search(clipped):
            self.refused = ["holds the summary of a diff, but no diff"]

    def worth(self) -> tuple[int, int]:
        """Say how much was read: hunks with all their lines, then hunks."""
        hunks = [hunk for diff in self.diffs for file in diff.files for hunk in file.hunks]
        return sum(hunk.complete for hunk in hunks), len(hunks) + len(self.diffs)

    def _starts(self) -> Iterator[int]:
        """Yield the lines at which a header or a hunk may begin."""
        line = before = 0
        for start in _STARTS.finditer(self.text):
            line += self.text.count("\n", before, start.start())
            before = start.start()
            yield line

    def _step(self) -> None:
        """Read what begins at this line: a file's header, a hunk, or nothing."""
        line = self.lines[self.at]
        start = _START.match(line)
        if not start:
            self.at += 1
            return
        marks = tuple(_MARK.findall(start["quote"]))
        rest = line[start.end("quote") :]
        if hunk := _HUNK.match(line):
            self._hunk(marks, hunk)
        elif rest.startswith("diff --git "):
            self._git(marks, rest)
        elif rest.startswith("Index: "):
            self._file(marks, _path(rest[7:]), new=True)
            self.at += 1
        elif rest.startswith("--- ") and (other := self._after(self.at + 1, marks)).startswith("+++ "):
            self._file(marks, _changed_file(rest[4:], other[4:]))
            self.at += 2
        else:
            self.at += 1

    def _after(self, at: int, marks: tuple[str, ...]) -> str:
        """Return a line without its quoting, "" if it is quoted otherwise or beyond the end."""
        if at >= len(self.lines):
            return ""
        inside = _margin(marks, 99).match(self.lines[at])
        return self.lines[at][inside.end() :] if inside else ""

    def _diff(self, marks: tuple[str, ...], fresh: bool = False) -> _Diff:
        """Return the diff that is being read at this depth of quoting; `fresh` begins another."""
        if fresh or marks not in self.current:
            self.current[marks] = _Diff(marks, self.at)
            self.diffs.append(self.current[marks])
        return self.current[marks]

    def _file(self, marks: tuple[str, ...], name: str, new: bool = False) -> _File:
        """Begin a file: a diff that had it already is over, unless it was only just announced."""
        diff = self._diff(marks)
        last = diff.files[-1] if diff.files else None
        if last and not new and not last.hunks and (last.mentioned or not last.name):
            last.name, last.mentioned = name or last.name, False
            return last
        if last and (last.hunks or last.what):
            diff.done.add(last.name)
        if name in diff.done:
            diff = self._diff(marks, fresh=True)
        diff.files.append(_File(name))
        diff.files[-1].mentioned = new
        diff.end = self.at
        return diff.files[-1]

    def _git(self, marks: tuple[str, ...], rest: str) -> None:
        """Read `diff --git` and the lines up to the first hunk, or to where no such line stands."""
        file = self._file(marks, _git_file(rest[11:]), new=True)
        diff = self.current[marks]
        self.at += 1
        while self.at < len(self.lines):
            rest = self._after(self.at, marks).rstrip()
            if index := re.match(r"index ([0-9a-f]{4,40}\.\.[0-9a-f]{4,40})\b", rest):
                diff.blobs.append(index[1])
            elif known := next((key for key in _EXTENDED if rest.startswith(key)), None):
                file.what = _EXTENDED[known].format(rest.removeprefix(known))
            elif not rest.startswith(("new mode", "similarity ", "dissimilarity ", "rename to ", "copy to ")):
                break
            self.at += 1

    def _hunk(self, marks: tuple[str, ...], header: re.Match[str]) -> None:
        """Take the lines of one hunk, until its counts are used up or the next file or hunk begins.

        A line without a sign is context, its leading blank lost.  A line quoted less deeply than the `@@` line
        is the replier's own and is passed over.  Where the replier left out lines, the hunk ends.
        """
        diff = self._diff(marks)
        file = diff.open()
        if marks and file.name and any(self._is_trimmed(line) for line in self.lines[diff.end : self.at]):
            diff.files.append(_File(""))  # the header of its file may be among what was cut out
            file = diff.files[-1]
        quote, span = header["quote"], _span(header)
        margin = _margin(marks, len(quote) - len(quote.rstrip(" \t")))
        old, new = span.old, span.new
        old_end, new_end = old + span.old_count, new + span.new_count
        taken: list[Line] = []
        self.at += 1
        while self.at < len(self.lines) and (old < old_end or new < new_end):
            inside = margin.match(self.lines[self.at])
            if self._begins(inside):
                break
            text = self.lines[self.at][inside.end() :] if inside else "\\"
            self.at += 1
            if marks and self._is_trimmed(text if inside else self.lines[self.at - 1]):
                self.at -= 1
                break
            if text.startswith("\\"):
                continue
            sign = text[0] if text[:1] in ("+", "-") else " "
            if (sign != "+" and old == old_end) or (sign != "-" and new == new_end):
                break
            line = Line(
                sign, old if sign != "+" else None, new if sign != "-" else None, text.removeprefix(sign)
            )
            taken.append(line)
            old += sign != "+"
            new += sign != "-"
        file.hunks.append(Hunk(file.name, span, header["section"], tuple(taken)))
        diff.end = self.at

    @staticmethod
    def _is_trimmed(line: str) -> bool:
        return line.lstrip("> \t").strip().lower() in _TRIMMED

    def _begins(self, inside: re.Match[str] | None) -> bool:
        """Say whether a file or hunk begins at this line, in the middle of a hunk with the margin `inside`."""
        line = self.lines[self.at]
        rest = line[inside.end() :] if inside else line
        if inside and rest[:1] in (" ", "+"):
            return False
        start = _START.match(rest)
        if not start or not rest[start.end("quote") :].startswith(_HEADER):
            return False
        if start["what"].startswith("---"):
            marks = tuple(_MARK.findall(line[: len(line) - len(rest)] + start["quote"]))
            after = [self._after(self.at + n, marks) for n in (1, 2)]
            return after[0].startswith("+++ ") and after[1].startswith("@@ -")
        return start["what"] != "diff -" or " " in rest[start.end() :]

    def patches(self) -> list[Patch]:
        """Make a Patch of each diff."""
        end = min((diff.at for diff in self.diffs), default=0)
        heads = {
            depth: _Head(self.lines[: min(end, HEAD)], depth).patch(self.name)
            for depth in {len(d.marks) for d in self.diffs}
        }
        return [
            heads[len(diff.marks)]._replace(
                hunks=tuple(hunk for file in diff.files for hunk in file.hunks),
                others=tuple(
                    FileChange(file.name, file.what or UNREAD) for file in diff.files if not file.hunks
                ),
                blobs=tuple(diff.blobs),
            )
            for diff in self.diffs
        ]


def _margin(marks: tuple[str, ...], indent: int) -> re.Pattern[str]:
    """Return the pattern of what stands before a line that is quoted with the same marks."""
    return re.compile(
        "".join(rf"[ \t]*(?:[A-Za-z]{{1,4}})?{re.escape(mark[-1])}" for mark in marks)
        + rf"[ \t]{{0,{indent}}}"
    )


def _span(header: re.Match[str]) -> Span:
    old, old_count, new, new_count = header.groups()[1:5]
    return Span(int(old), int(old_count or 1), int(new), int(new_count or 1))


def _path(text: str) -> str:
    """Return a path of a header line: without the date behind it, and without the quotes of odd names."""
    return text.split("\t")[0].strip().strip('"')


def _git_file(names: str) -> str:
    """Return the file that `diff --git` is about; its two names are mostly the same but for their prefixes."""
    half = len(names.rstrip()) // 2
    left, right = names[:half], names.rstrip()[half + 1 :]
    if not left.strip('"').partition("/")[2] == right.strip('"').partition("/")[2] != "":
        left, _, right = names.rstrip().rpartition(" ")
    return _changed_file(left, right)


def _changed_file(old: str, new: str) -> str:
    """Return the file that `---` and `+++` are about, without what stands before it in only one of the two.

    >>> _changed_file("linux-6.8.orig/arch/x86/kvm/x86.c", "linux-6.8/arch/x86/kvm/x86.c")
    'arch/x86/kvm/x86.c'
    >>> _changed_file("/dev/null", "b/new.c"), _changed_file("x.c.orig", "x.c")
    ('new.c', 'x.c')
    """
    before, after = _path(old).removesuffix(".orig"), _path(new)
    if "/dev/null" in (before, after):
        path = after if before == "/dev/null" else before
        return re.sub(r"^[abciow12]/", "", path)
    one, other = before.split("/"), after.split("/")
    if len(one) == len(other):
        differ = [at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
        if len(differ) == 1 and differ[0] < len(one) - 1:
            return "/".join(other[differ[0] + 1 :])
    return re.sub(r"^[abciow12]/", "", after)


# ------------------------------------------------------------------------------------------------ who and what


class _Head:
    """The lines before the first diff of a text, and what they say of a patch quoted `depth` times."""

    def __init__(self, lines: list[str], depth: int) -> None:
        self.lines, self.depth = [line.strip() for line in lines], depth
        self.commit = next(
            (m[1] for line in lines if (m := re.match(r"[|\\/_* ]*commit ([0-9a-f]{7,40})\b", line))), ""
        )
        self.indented = [line[4:].strip() for line in lines if line.startswith("    ")]

    def at(self, depth: int) -> Iterator[str]:
        """Yield the lines quoted `depth` times or more, without the marks of that depth."""
        margin = re.compile(rf"(?:[ \t]*[A-Za-z]{{0,4}}[>|]){{{depth}}}[ \t]{{0,9}}")
        for line in self.lines:
            if inside := margin.match(line):
                yield line[inside.end() :]

    def field(self, *names: str, depth: int = 0, last: bool = False) -> str:
        """Return what a field holds, the first or the last that is called by one of the names."""
        found = [value.strip() for line in self.at(depth) for name, colon, value in [line.partition(":")]
                 if colon and name.lower() in names and value[:1] in (" ", "\t") and value.strip()]  # fmt: skip
        return found[-1 if last else 0] if found else ""

    def subject(self) -> str:
        """Return the subject: the first line with a tag such as [PATCH 1/2], else the title."""
        for line in self.lines:
            text = line.lstrip("> \t")
            text = text[8:].strip() if text[:8].lower() == "subject:" else text
            if "patch" in _tag(text).lower():
                return text
        return self.field("subject", "description") or next(iter(filter(None, self.indented)), "")

    def author(self) -> str:
        """Name the writer: from a From or Author line, the reply's "On …, NAME wrote:", or the first sign-off."""
        if author := self.field("from", "author", depth=self.depth, last=True):
            return author
        for line in self.at(max(self.depth - 1, 0)):
            if line.startswith("On ") and "," in line and line.rstrip().endswith("wrote:"):
                return line.rstrip().removesuffix("wrote:").rpartition(",")[2].strip()
        return self.field("signed-off-by", depth=self.depth)

    def known_as(self) -> tuple[str, ...]:
        """Return the Message-ID and commit of the patch: its own, or those that a reply names."""
        if self.depth:
            thread = (self.field("references") or self.field("in-reply-to")).split()
            ids = thread[-self.depth :][:1]
        else:
            ids = [self.field("message-id"), self.commit, self.field("commit")]
        return tuple(each.strip("<>") for each in ids if each)

    def patch(self, name: str) -> Patch:
        """Return what is known of the patch, without the diff itself."""
        subject = self.subject()
        tag = _tag(subject)
        version = re.search(r"\bv\d+\b", tag, re.IGNORECASE)
        part = re.search(r"\b\d+/\d+\b", tag)
        own = tag != "" and not subject.startswith("[") and not self.depth
        return Patch(
            source=name,
            subject=subject,
            version=version[0].lower() if version else "v1" if "patch" in tag.lower() else "",
            part=part[0] if part else "",
            author=self.author(),
            sender=self.field("from") if self.depth else "",
            date=self.field("date", "authordate"),
            message_id=self.field("message-id"),
            quoted=self.depth,
            hunks=(),
            known_as=() if own else self.known_as(),
        )


_REPLY = re.compile(r"\A(?:(?:re|fw|fwd):[ \t]*)*", re.IGNORECASE)


def _tag(text: str) -> str:
    """Return what stands in the brackets that a subject begins with, after any "Re:"."""
    text = _REPLY.sub("", text, count=1)
    return text[1:].partition("]")[0] if text.startswith("[") and "]" in text else ""
