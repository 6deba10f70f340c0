# SPDX-License-Identifier: GPL-2.0-only
"""Write all widgets as one HTML file, which opens from disk and asks nobody for anything.

    python tools/live/pocket.py [--output FILE]

Beside it goes solver.js: the page loads it when somebody wants claims proved, and works without it.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from os.path import relpath
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is run as a file

from kvm_pf.common.text import escaped
from tools.live import build, licences
from tools.live.fetch import Unfetched

TITLE = "A KVM patch that you can run: the pocket edition"
LEAD = (
    "[PATCH 05/16] KVM: x86/mmu: Use synthetic page fault error code to indicate private faults, and the fault path "
    "around it. All is computed in this page, by the project's own Python; nothing leaves it."
)

IMPORTS = "import kvm_pf\nfrom kvm_pf.show import widgets\n"
FAULT = '"WRITE|USER|GUEST_FINAL", cr2_or_gpa=0x40002000, vm_type="sw-protected", private=True'


class Section(NamedTuple):
    """One widget of the page: where it stands, what it is called and for, and the expression that makes it."""

    name: str
    title: str
    about: str
    widget: str


SECTIONS = (
    Section(
        "code", "Error code", "What a page-fault error code says, and what each kernel does with it.",
        "widgets.error_code_explorer(0x2000100000006)",
    ),
    Section(
        "fault", "Fault", "Change a fault's state, and see the path change.",
        f'widgets.fault_explorer("posted", {FAULT})',
    ),
    Section(
        "steps", "Steps", "One fault, one step at a time: a write to private memory.",
        f"widgets.step_player(kvm_pf.explain({FAULT}))",
    ),
    Section(
        "patch", "Patch", "Is it this patch? Paste a mail or a diff, or drop the file here: if it is damaged, where?",
        "widgets.patch_checker()",
    ),
    Section(
        "trace", "Trace", "Paste lines of a trace, or drop the file here: what the guest did, and how it ended.",
        "widgets.trace_reader()",
    ),
    Section(
        "turn", "Your turn", "Edit a step or a constant of the path: which cases notice, which claims fall?",
        'widgets.your_turn("sanitize")',
    ),
    Section(
        "claims", "Claims", "Ask a claim of a kernel, for all codes and states; one that fails comes with a witness.",
        "widgets.claim_asker()",
    ),
)  # fmt: skip

POLICY = (
    "default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'; connect-src blob:; "
    "script-src 'self' blob: 'unsafe-inline' 'wasm-unsafe-eval'"
)


def page() -> str:
    """Return the whole page.  Raises Unfetched."""
    texts = build.scripts()
    texts["pocket.js"] = (build.PAGE / "pocket.js").read_text(encoding="utf-8")
    about = Section("about", "About", "What runs here, and under which licences.", "")
    parts = {
        "policy": POLICY,
        "title": escaped(TITLE),
        "style": "".join(map(build.own, ("colours.css", "front.css", "pocket.css"))),
        "lead": escaped(LEAD),
        "links": "\n".join(
            f'<a href="#{each.name}">{escaped(each.title)}</a>' for each in (*SECTIONS, about)
        ),
        "sections": "\n".join([*map(section, SECTIONS), section(about, licences.table())]),
        "scripts": "\n".join(build.inline(name, text) for name, text in texts.items()),
    }
    html = (build.PAGE / "pocket.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        html = html.replace(f"@{name}@", text, 2)
    return html


def section(each: Section, content: str = "") -> str:
    """Return a section as HTML, not made yet."""
    source = f' data-source="{escaped(IMPORTS + each.widget)}"' if each.widget else ""
    return (
        f'<section id="{each.name}"{source} hidden><h2>{escaped(each.title)}</h2><p>{escaped(each.about)}</p>'
        f"{content}</section>"
    )


def write(file: Path) -> None:
    """Write the page, and solver.js beside it.  Raises Unfetched if the page cannot be had; nothing is written then."""
    text = page()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    build.add_solver(file.parent)


def main() -> None:
    """Do what the command line asks."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=build.ROOT / "build/pocket/kvm_pf.html")
    file = parser.parse_args().output
    try:
        write(file)
    except Unfetched as error:
        sys.exit(f"pocket: {error}")
    print(f"written: {relpath(file)} ({file.stat().st_size / 1e6:.1f} MB), and solver.js beside it")


if __name__ == "__main__":
    main()
