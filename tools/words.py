# SPDX-License-Identifier: GPL-2.0-only
"""Count the words on the pages of the walkthrough: of text, of code, and of what the code prints and draws.

    python tools/words.py [PATH...]        the notebooks as they are stored; a row for each, and the sum

A word is anything between blanks that holds a letter or a digit; of HTML, only what a reader sees; figures count for
nothing.  What is folded is told apart: code of cells with the tag `fold` or `twin`, the pictures of widgets (`twin`),
which stand for a live widget only where nothing can run, and what is inside of <details>.
"""

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from html import unescape
from pathlib import Path

from nbformat import NotebookNode

from tools import notebooks, site

KINDS = ("text", "code", "output")
COLUMNS = (*KINDS, "seen", *(f"folded {kind}" for kind in KINDS), "all")
DETAILS = re.compile(r"<details>(.*?)</details>", re.DOTALL)


def words(text: str) -> int:
    """Return how many words a text has."""
    return len(re.findall(r"\S*\w\S*", text))


def plain(html: str) -> str:
    """Return what a reader sees of HTML, or of Markdown."""
    html = re.sub(r"\]\([^)]*\)", "]", html)
    html = html.replace("<wbr>", "")  # where a long name may be broken: no blank is seen there
    return unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))


def shown(output: NotebookNode) -> str:
    """Return what one output shows: its HTML if it has any, or else its text, but not the name of a figure."""
    data = output.get("data", {})
    if "text/html" in data:
        return data["text/html"]
    if "image/png" in data or site.is_live(output):
        return ""
    return output.get("text", data.get("text/plain", ""))


def count(notebook: NotebookNode) -> dict[str, int]:
    """Return the words of a notebook, by column."""
    found = dict.fromkeys(COLUMNS, 0)

    def add(kind: str, html: str, folded: bool) -> None:
        hidden = words(plain(html if folded else " ".join(DETAILS.findall(html))))
        found[f"folded {kind}"] += hidden
        found[kind] += words(plain(html)) - hidden

    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            add("text", cell.source, False)
            continue
        found["folded code" if {"fold", "twin"} & {*tags} else "code"] += words(cell.source)
        for output in cell.outputs:
            add("output", shown(output), "twin" in tags)
    found["seen"] = sum(found[kind] for kind in KINDS)
    found["all"] = found["seen"] + sum(found[f"folded {kind}"] for kind in KINDS)
    return found


def main() -> None:
    """Do what the command line asks."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="*", type=Path, help="notebooks (default: all of them)")
    rows = {}
    for path in parser.parse_args().path or sorted(notebooks.FOLDER.glob("*.ipynb")):
        rows[path.stem] = count(notebooks.read(path))
    rows["sum"] = {column: sum(row[column] for row in rows.values()) for column in COLUMNS}
    print(f"{'':24}", *(f"{column:>14}" for column in COLUMNS))
    for name, row in rows.items():
        print(f"{name:24}", *(f"{row[column]:14,}" for column in COLUMNS))


if __name__ == "__main__":
    main()
