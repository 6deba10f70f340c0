# SPDX-License-Identifier: GPL-2.0-only
"""Words are counted where a reader meets them; and what is folded is told apart."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import notebooks, words


def printed(**data: str):
    return new_output("display_data", {kind.replace("_", "/"): value for kind, value in data.items()})


@pytest.mark.parametrize(
    ("cell", "column", "count"),
    [
        (new_markdown_cell("# Two words\n\n- – → one"), "text", 3),
        (new_markdown_cell("[a mail](https://example.org/a b)"), "text", 2),
        (new_markdown_cell("<details><summary>Answer</summary>It is 8.</details>"), "folded text", 4),
        (new_code_cell("a = f(0x8)"), "code", 2),
        (new_code_cell("a = f(0x8)", metadata={"tags": ["fold"]}), "folded code", 2),
        (new_code_cell("", outputs=[new_output("stream", text="one two\n")]), "output", 2),
        (new_code_cell("", outputs=[printed(text_html="<b>one</b><td>two", text_plain="name")]), "output", 2),
        (new_code_cell("", outputs=[printed(text_html="<b>one_<wbr>name_<wbr>broken</b>")]), "output", 1),
        (new_code_cell("", outputs=[printed(text_html="<style>.a {b: c}</style>one")]), "output", 1),
        (
            new_code_cell("", outputs=[printed(text_html="<details>a b</details>", text_plain="")]),
            "folded output",
            2,
        ),
        (new_code_cell("", outputs=[printed(image_png="", text_plain="<Picture of a b>")]), "output", 0),
        (new_code_cell("", outputs=[printed(text_plain="hunk_viewer(hunk 3)")]), "output", 0),
        (
            new_code_cell("", outputs=[printed(text_html="one")], metadata={"tags": ["twin"]}),
            "folded output",
            1,
        ),
    ],
)
def test_a_cell(cell, column, count):
    found = words.count(new_notebook(cells=[cell]))
    seen = 0 if column.startswith("folded") else count
    assert found == {**dict.fromkeys(words.COLUMNS, 0), column: count, "seen": seen, "all": count}


def test_the_command_line_sums_up(monkeypatch, capsys):
    paths = [str(notebooks.FOLDER / name) for name in ("00_a_primer.ipynb", "23_glossary.ipynb")]
    monkeypatch.setattr("sys.argv", ["words.py", *paths])
    words.main()
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["00_a_primer", "23_glossary", "sum"]
    one, two, both = ([int(n.replace(",", "")) for n in row.split()[1:]] for row in rows)
    assert [a + b for a, b in zip(one, two, strict=True)] == both
    assert head.split()[-1] == "all"
