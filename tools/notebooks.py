# SPDX-License-Identifier: GPL-2.0-only
"""Run, check and reproduce the notebooks.

`pytest --nbval notebooks` compares what each cell prints and draws with what it printed and drew before.  It does
not look at cells that were never run, nor at how a notebook is kept.  This does:

    python tools/notebooks.py run [PATH...]         execute, bring into normal form, write
    python tools/notebooks.py check [PATH...]       name what would make a comparison worthless
    python tools/notebooks.py reproduce [PATH...]   execute again, name the first difference, figures included
"""

import json
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.displayhook import DisplayHook
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbval.plugin import comment_markers, metadata_tags

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"

SCREEN = 30
"""Lines of code that one screen shows."""

REASON = re.compile(r"^# not compared: \w.+", re.MULTILINE)
"""The line that an ignored cell must have.  (nbval wants its own marker to stand alone on a line.)"""

MACHINE_PATH = r"(?<![A-Za-z0-9+])/(?:home|Users|root|tmp|work|opt|var/folders)/"
"""A path that means something on one machine only; not so after a base64 or word character."""

VOLATILE = {
    "the address of an object": r"\bat 0x[0-9a-f]{6,}(?:>|&gt;)",
    "a path of this machine": MACHINE_PATH,
    "a file of one kernel run": r"ipykernel_\d+",
    "a point in time": r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d",
    "a duration": r"Wall time:|CPU times:|per loop \(mean",
    "a random id of a styled table": r"#T_[0-9a-f]{5}_",
}

FOLDED = {
    "fold": {"source_hidden": True},
    "twin": {"source_hidden": True, "outputs_hidden": True},
}
"""Tags of cells that are folded, and how JupyterLab is told: code that only checks or sets up; the picture of a widget
that stands above it, alive."""

FIGURES = ("image/png", "image/jpeg")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def read(path: Path) -> NotebookNode:
    """Return the notebook as it is stored."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def execute(path: Path) -> NotebookNode:
    """Run every cell in a new kernel and return the notebook in normal form; write nothing."""
    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None  # the client leaves empty cells as they are
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": path.parent}},
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
    )
    client.create_kernel_manager()
    with kernel_start():
        client.start_new_kernel()
        client.start_new_kernel_client()
    client.execute()
    return normalise(notebook)


@contextmanager
def kernel_start() -> Iterator[None]:
    """Let one process at a time start a kernel.

    Jupyter chooses free ports first and takes them a second later; of two kernels that start at once, one may
    find its port gone and die.
    """
    with open(__file__) as lock:
        flock(lock, LOCK_EX)
        yield


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop, in place, what changes from run to run or from machine to machine; return the notebook."""
    title = {"title": notebook.metadata.title} if "title" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            **title,
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"c{number:02d}"
        tags = cell.metadata.get("tags", [])
        hidden = {key: value for tag in tags for key, value in FOLDED.get(tag, {}).items()}
        kept = {"jupyter": hidden if cell.cell_type == "code" else {}, "tags": tags}
        cell.metadata = nbformat.from_dict({key: value for key, value in kept.items() if value})
        for output in cell.get("outputs", []):
            normalise_output(output)
    return notebook


def normalise_output(output: NotebookNode) -> None:
    """Drop, in place, the number of a widget and what a figure says of who drew it."""
    data = output.get("data", {})
    data.pop(WIDGET_VIEW, None)
    if "image/png" in data:
        data["image/png"] = b64encode(without_notes(b64decode(data["image/png"]))).decode()


def digest_figures(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return normalised copies of outputs with a digest in place of each figure, short enough to be shown."""
    copies = deepcopy(outputs)
    for output in copies:
        normalise_output(output)
        for kind in FIGURES:
            if kind in output.get("data", {}):
                output.data[kind] = f"figure {sha256(output.data[kind].encode()).hexdigest()[:16]}"
    return copies


def without_notes(png: bytes) -> bytes:
    """Return the PNG without the chunks that say in words who drew it, with what, and when."""
    kept, rest = png[:8], png[8:]
    while rest:
        length = 12 + int.from_bytes(rest[:4])  # length, type, data, checksum
        if rest[4:8] not in (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf"):
            kept += rest[:length]
        rest = rest[length:]
    return kept


def check(path: Path) -> list[str]:
    """Return what would make a comparison of this notebook worthless, one sentence each; empty if nothing."""
    notebook = read(path)
    found = list(findings(notebook))
    if path.read_text() != nbformat.writes(normalise(notebook)) + "\n":
        found.append("is not in normal form: `make notebooks` writes it")
    return found


def findings(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with the code cells and with what they printed."""
    numbers = [number for number, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code"]
    if numbers and not any(cell.outputs for cell in code_cells(notebook)):
        yield "has no output at all: were the outputs stripped?"
    for count, number in enumerate(numbers, 1):
        cell = notebook.cells[number - 1]
        for finding in cell_findings(cell, count):
            yield f"c{number:02d} {finding}"


def cell_findings(cell: NotebookNode, count: int) -> Iterator[str]:
    """Yield what is wrong with one code cell, the `count`th of its notebook."""
    if not cell.source.strip():
        yield "is empty"
    if cell.execution_count is None:
        yield "was not run"
    elif cell.execution_count != count:
        yield f"was run as number {cell.execution_count}, not {count}: run all cells once, in order"
    if (lines := len(cell.source.splitlines())) > SCREEN:
        yield f"has {lines} lines: more than the {SCREEN} of a screen"
    if DisplayHook.semicolon_at_end_of_expression(TransformerManager().transform_cell(cell.source)):
        yield "ends with a semicolon: write `_ = ...`"
    marks = [tag for tag in cell.metadata.get("tags", []) if tag in metadata_tags]
    marks += [mark for mark in comment_markers if re.search(rf"#\s*{mark}\b", cell.source)]
    if marks and not REASON.search(cell.source):
        yield f"is marked {', '.join(marks)} without a line `# not compared: WHY`"
    if re.search(MACHINE_PATH, cell.source):
        yield "names a path of one machine"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"ends in {output.ename}"
        elif output.get("name") == "stderr":
            yield "prints a warning"
        for what, pattern in VOLATILE.items():
            if seen := re.search(pattern, text(output)):
                yield f"shows {what}: {seen.group()}"


def text(output: NotebookNode) -> str:
    """Return everything of the output that can be read, of whatever kind."""
    data = {kind: value for kind, value in output.get("data", {}).items() if kind not in FIGURES}
    shown = [value if isinstance(value, str) else json.dumps(value) for value in data.values()]
    return "\n".join([output.get("text", ""), *shown])


def reproduce(path: Path) -> list[str]:
    """Execute the notebook again; return the first difference from what is stored, or nothing.

    Outputs that are not compared, for a stated reason, are not compared.
    """
    try:
        return difference(comparable(read(path)), comparable(execute(path)))
    except CellExecutionError as error:
        return [f"cannot be executed: {error.ename}: {error.evalue}"]


def comparable(notebook: NotebookNode) -> NotebookNode:
    """Drop, in place, the outputs of cells that state a reason not to compare them; return the notebook."""
    for cell in code_cells(notebook):
        if REASON.search(cell.source):
            cell.outputs = []
    return notebook


def difference(stored: Any, fresh: Any, place: str = "notebook") -> list[str]:
    """Return a sentence about the first place where two JSON values differ, or nothing."""
    if isinstance(stored, dict) and isinstance(fresh, dict):
        inside = [(f"{place}.{key}", stored.get(key), fresh.get(key)) for key in sorted({*stored, *fresh})]
    elif isinstance(stored, list) and isinstance(fresh, list) and len(stored) == len(fresh):
        inside = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(stored, fresh, strict=True), 1)]
    else:
        return [] if stored == fresh else [f"differs at {place}: {short(stored)}, now {short(fresh)}"]
    return next((found for where, a, b in inside if (found := difference(a, b, where))), [])


def short(value: Any) -> str:
    """Return the value as text of at most one line."""
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:50]}... ({len(words)} characters)"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(path: Path) -> list[str]:
    """Execute the notebook and write it back in normal form."""
    nbformat.write(execute(path), path)
    return []


def main() -> int:
    """Do what the command line asks; return 1 if there was anything to complain about."""
    actions: dict[str, Callable[[Path], list[str]]] = {"run": run, "check": check, "reproduce": reproduce}
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=actions)
    parser.add_argument("path", nargs="*", type=Path, help="notebooks (default: all of them)")
    arguments = parser.parse_args()
    complaints = 0
    for path in arguments.path or sorted(FOLDER.glob("*.ipynb")):
        found = actions[arguments.action](path)
        complaints += len(found)
        print(*(f"{path.name} {finding}" for finding in found or ["ok"]), sep="\n", flush=True)
    return complaints > 0


if __name__ == "__main__":
    sys.exit(main())
