# SPDX-License-Identifier: GPL-2.0-only
"""The hunk viewer: what each line of a hunk does, the same in Python, and the real lines if they are at hand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path

from kvm_pf.common.typed import typed
from kvm_pf.patch.diff import step_diff
from kvm_pf.patch.identify import identify
from kvm_pf.patch.ledger import digest, ledger_rows
from kvm_pf.patch.reader import Patch, read_patch
from kvm_pf.show.diff import diff_table
from kvm_pf.show.markup import Html, bold, code, element, halves, join, source_line, table
from kvm_pf.show.widgets.panel import Panel, choice, line


def lines_table(caption: str, ids: Collection[str], real: Mapping[str, str] | None = None) -> Html:
    """Say what lines of the patch do, by ledger id; `real` maps ids to the lines themselves, which then stand there."""
    heads = ["line", "kind", "what it does", "what became of it, up to Linux 7.3", "step"]
    rows = []
    for row in ledger_rows():
        if row["id"] in ids:
            cells: list[object] = [bold(row["id"]), row["role"], row["does"], row["fate"], code(row["step"])]
            if real is not None:
                text = real.get(row["id"])
                cells.append("not in this copy" if text is None else source_line(text, row["sign"]))
            rows.append(cells)
    return table(caption, heads if real is None else [*heads, "the line itself"], rows)


def real_lines(patch: Patch) -> dict[str, str]:
    """Find the ledger's lines in a patch by their digests: id to text, in the order of the ledger."""
    found = {}
    for file in patch.files:
        rows = [row for row in ledger_rows() if row["file"] == file]
        lines = [line for hunk in patch.hunks if hunk.file == file for line in hunk.changed]
        wanted = [(row["sign"], row["digest"]) for row in rows]
        given = [(line.sign, digest(line.text)) for line in lines]
        for a, b, size in SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks():
            found.update({rows[a + n]["id"]: lines[b + n].text for n in range(size)})
    return found


@typed()
def hunk_viewer(patch: str | Path | Patch | None = None) -> HunkViewer:
    """Return a viewer of the patch's hunks; with a path to the patch or a mail, or a Patch read, of its lines too.

    Raises InputError if there is no patch to be read.
    """
    return HunkViewer(patch if patch is None or isinstance(patch, Patch) else read_patch(patch))


class HunkViewer(Panel):
    """The ledger's rows and the Python of one hunk.  Control: hunk (1, 2 or 3)."""

    def __init__(self, patch: Patch | None) -> None:
        self.patch = patch
        self.real = None if patch is None else real_lines(patch)
        self.verdict = None if patch is None else identify(patch)
        files = {int(row["hunk"]): row["file"] for row in ledger_rows()}
        options = [(f"hunk {number}: {file}", number) for number, file in files.items()]
        hunk = choice("show", "which hunk of the patch", options, 1)
        super().__init__({"hunk": hunk}, [line(hunk)], wide=True)
        self.react("hunk")

    def react(self, name: str) -> None:
        """Show the hunk that was chosen."""
        self.put(join(self._parts(self.real)))

    def parts(self) -> Iterator[Html]:
        """Yield the output without the patch's own lines: what is committed holds none of its text."""
        return self._parts(None)

    def _parts(self, real: Mapping[str, str] | None) -> Iterator[Html]:
        number = self.controls["hunk"].value
        rows = [row for row in ledger_rows() if int(row["hunk"]) == number]
        signs = [row["sign"] for row in rows]
        if self.patch and self.verdict and self.real is not None:
            here = sum(row["id"] in self.real for row in rows)
            yield element(
                "p", bold(self.verdict.kind), f": {here} of the hunk's {len(rows)} lines are in it, by digest",
                "" if real is not None else "; they are shown in the live widget only",
            )  # fmt: skip
        caption = f"hunk {number}: {signs.count('+')} lines added, {signs.count('-')} removed"
        python = [element("p", bold("the same in Python"))]
        for step in dict.fromkeys(row["step"] for row in rows):
            python += [element("p", code(step)), diff_table(step_diff(step))]
        yield halves([lines_table(caption, [row["id"] for row in rows], real)], python)

    def __repr__(self) -> str:
        return f"hunk_viewer(hunk {self.controls['hunk'].value})"
