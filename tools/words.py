# SPDX-License-Identifier: GPL-2.0-only
"""Count the words on the pages of the walkthrough: of text, of code, and of what the code prints and draws.

    python tools/words.py [PATH...]        the notebooks as they are stored; a row for each, and the sum

A word is anything between blanks that holds a letter or a digit; of HTML, only what a reader sees.  Figures
count for nothing.  Code that is folded on the site and in JupyterLab stands in a column of its own.
"""

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from html import unescape
from pathlib import Path

from nbformat import NotebookNode

from tools import notebooks, site

COLUMNS = ("text", "code", "folded code", "output", "folded output", "all")


def words(text: str) -> int:
    """Return how many words a text has."""
    return len(re.findall(r"\S*\w\S*", text))


def seen(html: str) -> str:
    """Return what a reader sees of HTML."""
    return unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))


def output_words(output: NotebookNode) -> int:
    """Return the words of one output: its HTML if it has any, or else its text, but not the name of a figure."""
    data = output.get("data", {})
    if "text/html" in data:
        return words(seen(data["text/html"]))
    if "image/png" in data or site.is_live(output):
        return 0
    return words(output.get("text", data.get("text/plain", "")))


def count(notebook: NotebookNode) -> dict[str, int]:
    """Return the words of a notebook, by column."""
    found = dict.fromkeys(COLUMNS, 0)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            found["text"] += words(seen(re.sub(r"\]\([^)]*\)", "]", cell.source)))
            continue
        found["folded code" if {"fold", "twin"} & {*tags} else "code"] += words(cell.source)
        printed = sum(map(output_words, cell.outputs))
        found["folded output" if "twin" in tags else "output"] += printed
    found["all"] = sum(found.values())
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
