# SPDX-License-Identifier: GPL-2.0-only
"""The patch checker: paste a mail or choose a file, and read whether it is this patch, and where it is damaged."""

from __future__ import annotations

from collections.abc import Iterator

from ipywidgets import FileUpload, Layout, Textarea

from kvm_pf.common.typed import typed
from kvm_pf.patch.identify import SHOWN, Identity, identify
from kvm_pf.patch.reader import Found, Patch, likeness, read_patches
from kvm_pf.show.markup import Html, bold, code, element, join, table
from kvm_pf.show.widgets.panel import Panel, button, line

HINT = "Paste a mail, a page of an archive or a diff into the box, or choose a file."


@typed()
def patch_checker(text: str = "") -> PatchChecker:
    """Return a checker of patches; it begins with `text`: a mail, a diff, or nothing.

    Raises InputError if there is text, but no diff in it, or if it is no text.
    """
    return PatchChecker(text)


class PatchChecker(Panel):
    """What each diff in a text is: `found` are the diffs, `verdicts` what they are.  Controls: text, check, file."""

    def __init__(self, text: str) -> None:
        box = Textarea(
            text, description="mail or diff", tooltip="the text of a mail, an archive's page or a diff",
            placeholder=HINT, rows=9, continuous_update=False, layout=Layout(width="auto"),
            style={"description_width": "initial"},
        )  # fmt: skip
        upload = FileUpload(
            accept="", multiple=False, description="file", tooltip="a mail or a diff, packed or not"
        )
        controls = {"text": box, "check": button("check", "check the text in the box"), "file": upload}
        super().__init__(controls, [box, line(controls["check"], upload)], wide=True)
        controls["check"].on_click(self._listen("text"))
        self.found: Found | None = None
        self.verdicts: list[Identity] = []
        self._upload = False
        self._take(text.encode(errors="replace"))

    def react(self, name: str) -> None:
        """Check what was pasted or chosen."""
        if name == "text":
            self._take(self.controls["text"].value.encode(errors="replace"))
        elif self.controls["file"].value:
            self._take(bytes(self.controls["file"].value[0]["content"]), upload=True)

    def _take(self, content: bytes, upload: bool = False) -> None:
        found = read_patches(content) if content.strip() else None
        self._upload = upload
        self.verdicts = [identify(patch) for patch in found.patches] if found else []
        self.found = found
        self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield what each diff is, then more of the one that is most like the posted patch."""
        if self.found is None:
            yield element("p", HINT)
            return
        pairs = list(zip(self.found.patches, self.verdicts, strict=True))
        for patch, verdict in pairs:
            yield element("p", bold(verdict.what), f": {patch.subject}" if patch.subject else "")
        for reason in self.found.refused:
            yield element("p", f"not read: {reason}")
        yield from _particulars(
            *max(pairs, key=lambda pair: (pair[1].kind == "this patch", likeness(pair[0])))
        )

    def settings(self) -> Html:
        """Tell where the diffs are from and how many there are; the text itself is the user's."""
        count = f"{len(self.verdicts)} diff{'s' * (len(self.verdicts) != 1)}"
        parts = {"mail or diff": "none" if self._upload else count, "file": count if self._upload else "none"}
        return join([join([name, ": ", bold(value)]) for name, value in parts.items()], " · ")

    def __repr__(self) -> str:
        return f"patch_checker({', '.join(verdict.kind for verdict in self.verdicts) or 'nothing'})"


def _particulars(patch: Patch, verdict: Identity) -> Iterator[Html]:
    """Yield where a copy is damaged, which of the three changes it makes, and what it touches."""
    if verdict.kind == "a damaged copy":
        places = [
            (each.file, str(each.hunk), str(each.line or "as a whole"), each.expected, each.found)
            for each in verdict.differences
        ]
        yield table(
            "where it departs from the posted patch",
            ("file", "hunk", "line of it", "expected", "found"),
            places,
        )
    if verdict.changes:
        made = [(code(change.step), change.status) for change in verdict.changes]
        yield table("the patch's three changes", ("step", "in this diff"), made)
    touched = [
        (str(each.hunk), each.file, ", ".join(each.functions) or "–", ", ".join(each.steps) or "–")
        for each in verdict.touched
    ]
    yield table("what it touches", ("hunk", "file", "functions", "steps of the model"), touched)
    added, removed = patch.counts
    facts = {
        "lines": f"+{added} −{removed}, of which {len(verdict.present)} are the posted patch's",
        "not the posted patch's": "; ".join(
            f"{line.sign}{line.text.strip()}"[:90] for line in verdict.unmatched[:SHOWN]
        ),
        "closest in behaviour": verdict.revision,
        "author": patch.author,
        "date": patch.date,
        "message-id": patch.message_id,
        "note": "; ".join(verdict.notes),
    }
    yield table("", (), [(bold(name), value) for name, value in facts.items() if value])
