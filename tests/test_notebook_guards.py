# SPDX-License-Identifier: GPL-2.0-only
"""The notebooks are sound, print what they printed and draw what they drew; and damage is noticed."""

import io
import os
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
import pytest
from matplotlib import image
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import notebooks

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_nothing_makes_the_comparison_worthless(path):
    assert notebooks.check(path) == []


# A small notebook with one of each: a printed line, a value, a figure, a widget.

LOGIC = "MASK = 1 << 34\n"
CELLS = [
    new_markdown_cell("# One of each"),
    new_code_cell("import ipywidgets\nimport matplotlib.pyplot as plt\n\nfrom logic import MASK"),
    new_code_cell("print('bit 34')\nhex(MASK)"),
    new_code_cell("_ = plt.plot([0, 1], [1, 0])"),
    new_code_cell("ipywidgets.HTML('<b>34</b>')"),
]
IMPORTS, VALUE, FIGURE, WIDGET = 1, 2, 3, 4


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """The small notebook, executed."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "logic.py").write_text(LOGIC)
    nbformat.write(new_notebook(cells=CELLS), folder / "small.ipynb")
    notebooks.run(folder / "small.ipynb")
    return (folder / "small.ipynb").read_text()


@pytest.fixture(scope="module")
def again(text, tmp_path_factory) -> nbformat.NotebookNode:
    """The same, executed once more somewhere else."""
    folder = tmp_path_factory.mktemp("again")
    (folder / "logic.py").write_text(LOGIC)
    (folder / "small.ipynb").write_text(text)
    return notebooks.execute(folder / "small.ipynb")


@pytest.fixture
def path(text, tmp_path) -> Path:
    """A copy of it, free to be damaged."""
    (tmp_path / "logic.py").write_text(LOGIC)
    (tmp_path / "small.ipynb").write_text(text)
    return tmp_path / "small.ipynb"


def damage(path: Path, number: int, **changes: object) -> None:
    """Change fields of one cell; the rest of the file stays as it was."""
    notebook = notebooks.read(path)
    notebook.cells[number].update(changes)
    nbformat.write(notebook, path)


def test_the_undamaged_notebook_passes(path, again):
    assert notebooks.check(path) == []
    assert notebooks.difference(notebooks.read(path), again) == []
    assert path.read_text() == nbformat.writes(again) + "\n"


def test_normal_form_holds_nothing_of_one_run(text):
    assert '"execution": {' not in text
    assert "widget-view" not in text
    assert "model_id" not in text
    notebook = nbformat.reads(text, 4)
    assert [cell.id for cell in notebook.cells] == ["c01", "c02", "c03", "c04", "c05"]
    assert notebook.metadata.language_info == {"name": "python"}
    png = b64decode(notebook.cells[FIGURE].outputs[0].data["image/png"])
    assert b"tEXt" not in png
    assert image.imread(io.BytesIO(png)).ndim == 3


@pytest.mark.parametrize(
    ("tags", "hidden"),
    [
        (["fold"], {"source_hidden": True}),
        (["twin"], {"source_hidden": True, "outputs_hidden": True}),
        (["other"], None),
        ([], None),
    ],
)
def test_jupyterlab_is_told_what_is_folded(tags, hidden):
    notebook = new_notebook(cells=[new_code_cell("1", metadata={"tags": tags, "scrolled": True})])
    kept = notebooks.normalise(notebook).cells[0].metadata
    assert kept == {**({"tags": tags} if tags else {}), **({"jupyter": hidden} if hidden else {})}


def redrawn(text: str) -> str:
    """The small notebook with one pixel of its figure changed."""
    notebook = nbformat.reads(text, 4)
    data = notebook.cells[FIGURE].outputs[0].data
    pixels = image.imread(io.BytesIO(b64decode(data["image/png"])))
    pixels[5, 5] = (1, 0, 0, 1)
    drawn = io.BytesIO()
    image.imsave(drawn, pixels)
    data["image/png"] = b64encode(drawn.getvalue()).decode()
    return nbformat.writes(notebooks.normalise(notebook)) + "\n"


def test_nbval_notices_a_changed_output_a_changed_figure_and_a_changed_constant(text, root, tmp_path):
    kinds = {
        "committed": (redrawn(text.replace("0x400000000", "0x400000001")), LOGIC),
        "logic": (text, "MASK = 1 << 35\n"),
    }
    for kind, (notebook, logic) in kinds.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "small.ipynb").write_text(notebook)
        (tmp_path / kind / "logic.py").write_text(logic)
    command = [sys.executable, "-m", "pytest", "-p", "notebooks.conftest", "--nbval", "--nbval-current-env"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    failed = re.findall(r"^FAILED (\w+)/small.ipynb::Cell (\d)", run.stdout, re.MULTILINE)
    value, figure = VALUE - IMPORTS, FIGURE - IMPORTS  # nbval counts cells of code, from 0
    assert failed == [("committed", str(value)), ("committed", str(figure)), ("logic", str(value))]


def test_a_changed_output(text, again):
    changed = nbformat.reads(text.replace("0x400000000", "0x400000001"), 4)
    assert notebooks.difference(changed, again) == [
        "differs at notebook.cells[3].outputs[2].data.text/plain: \"'0x400000001'\", now \"'0x400000000'\""
    ]


def test_a_changed_figure(text, again):
    (found,) = notebooks.difference(nbformat.reads(redrawn(text), 4), again)
    assert found.startswith("differs at notebook.cells[4].outputs[1].data.image/png: ")


def test_a_cell_that_fails(path):
    damage(path, IMPORTS, source="1 / 0")
    assert notebooks.reproduce(path) == ["cannot be executed: ZeroDivisionError: division by zero"]


NOT_NORMAL = "is not in normal form: `make notebooks` writes it"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"source": ""}, "c03 is empty"),
        ({"execution_count": None}, "c03 was not run"),
        ({"execution_count": 7}, "c03 was run as number 7, not 2: run all cells once, in order"),
        ({"source": "MASK;  # quiet"}, "c03 ends with a semicolon: write `_ = ...`"),
        ({"source": "%matplotlib inline\nMASK;"}, "c03 ends with a semicolon: write `_ = ...`"),
        ({"source": "MASK\n" * 31}, "c03 has 31 lines: more than the 30 of a screen"),
        (
            {"source": "# NBVAL_IGNORE_OUTPUT\nMASK"},
            "c03 is marked NBVAL_IGNORE_OUTPUT without a line `# not compared: WHY`",
        ),
        (
            {"metadata": {"tags": ["nbval-skip"]}},
            "c03 is marked nbval-skip without a line `# not compared: WHY`",
        ),
        ({"source": "open('/" + "tmp/x')"}, "c03 names a path of one machine"),
        ({"id": "c99"}, NOT_NORMAL),
        ({"metadata": {"execution": {}}}, NOT_NORMAL),
    ],
)
def test_a_damaged_cell(path, changes, finding):
    damage(path, VALUE, **changes)
    assert notebooks.check(path) == [finding]


@pytest.mark.parametrize(
    ("printed", "finding"),
    [
        ("<Line2D at 0x7f1234567890>", "the address of an object: at 0x7f1234567890>"),
        ("&lt;Styler at 0x7f1234567890&gt;", "the address of an object: at 0x7f1234567890&gt;"),
        ("read /" + "tmp/x.py", "a path of this machine: /" + "tmp/"),
        ("ipykernel_1234/5.py:1", "a file of one kernel run: ipykernel_1234"),
        ("2026-01-01 12:00:00", "a point in time: 2026-01-01 12:00"),
        ("Wall time: 3 ms", "a duration: Wall time:"),
        ("<style>#T_0a1b2_row0 {}", "a random id of a styled table: #T_0a1b2_"),
    ],
)
def test_a_volatile_output(path, printed, finding):
    stream = new_output("stream", name="stdout", text=printed)
    rich = new_output("display_data", data={"text/html": printed, "application/json": {"a": 1}})
    for output in (stream, rich):
        damage(path, VALUE, outputs=[output])
        assert notebooks.check(path) == [f"c03 shows {finding}"]


def test_an_error_and_a_warning(path):
    error = new_output("error", ename="KeyError", evalue="3", traceback=[])
    warning = new_output("stream", name="stderr", text="careful")
    damage(path, VALUE, outputs=[error, warning])
    assert notebooks.check(path) == ["c03 ends in KeyError", "c03 prints a warning"]


def test_stripped_outputs(path):
    for number in (VALUE, FIGURE, WIDGET):
        damage(path, number, outputs=[])
    assert notebooks.check(path) == ["has no output at all: were the outputs stripped?"]


def test_a_stated_reason_lets_a_cell_be_ignored(path):
    damage(path, VALUE, source="# NBVAL_IGNORE_OUTPUT\n# not compared: it is a clock\nMASK")
    assert notebooks.check(path) == []
    stored, fresh = notebooks.read(path), notebooks.read(path)
    fresh.cells[VALUE].outputs = [new_output("stream", name="stdout", text="at another time")]
    assert notebooks.difference(stored, fresh) != []
    assert notebooks.difference(*map(notebooks.comparable, (stored, fresh))) == []


def test_what_the_model_prints_is_no_object(path):
    stream = new_output("stream", name="stdout", text="a write at 0xfee00000, code 0x200000004\n")
    damage(path, VALUE, outputs=[stream])
    assert notebooks.check(path) == []


def test_the_command_line(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "check", str(path)])
    assert (notebooks.main(), capsys.readouterr().out) == (0, "small.ipynb ok\n")
    damage(path, VALUE, source="")
    assert (notebooks.main(), capsys.readouterr().out) == (1, "small.ipynb c03 is empty\n")
