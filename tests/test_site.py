# SPDX-License-Identifier: GPL-2.0-only
"""The site reads well without a kernel and without a network, and leads nowhere that does not exist."""

import functools
import re
import sys
import tarfile
from base64 import b64encode
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kvm_pf.show.widgets.error_code import error_code_explorer
from tools import notebooks, site
from tools.live import build
from tools.live.fetch import Unfetched

FIRST = """# Bit 49 & *others*

A guest wrote to `0x40002000`, a private page.  Who says so?

| a | table |
|---|---|
| 1 | 2 |

See [the bits](01_second.ipynb#The-bits), [the cases](../data/cases/README.md)
and [the mail](https://lore.kernel.org/kvm/20240228024147.41573-6-seanjc@google.com)."""

SIZE = (60, 40)
WIDGET = error_code_explorer(0x6)


def displayed(**metadata: object) -> nbformat.NotebookNode:
    """A figure, as a cell shows it."""
    file = BytesIO()
    Figure(figsize=SIZE, dpi=1).savefig(file)
    png = b64encode(file.getvalue()).decode()
    return new_output("display_data", {"image/png": png, "text/plain": "<Picture>"}, metadata=metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A site of two small notebooks, with one of each in the first."""
    live = {"text/plain": repr(WIDGET), notebooks.WIDGET_VIEW: {"model_id": "0a1b"}}
    still = {"text/plain": repr(WIDGET.static()), "text/html": WIDGET.static().html}
    first = [
        new_markdown_cell(FIRST),
        new_code_cell("plot.bit_layout(0x6)", outputs=[displayed()]),
        new_code_cell("again", outputs=[displayed(**{"image/png": {"alt": 'WRITE & USER, "both"'}})]),
        new_code_cell(
            "widget", outputs=[new_output("display_data", live), new_output("display_data", still)]
        ),
        new_code_cell("print('told')", outputs=[new_output("stream", text="told\n")]),
    ]
    second = [new_markdown_cell("# Second\n\nIt is short."), new_markdown_cell("## The bits\n\nBack.")]
    folder = tmp_path_factory.mktemp("site")
    pages = {"00_first": new_notebook(cells=first), "01_second": new_notebook(cells=second)}
    site.write([site.prepare(name, notebook) for name, notebook in pages.items()], folder)
    return folder


@pytest.fixture(scope="module")
def walkthrough(tmp_path_factory) -> Path:
    """The site of the notebooks as they are stored."""
    folder = tmp_path_factory.mktemp("walkthrough")
    paths = sorted(notebooks.FOLDER.glob("*.ipynb"))
    site.write([site.prepare(path.stem, notebooks.read(path)) for path in paths], folder)
    return folder


@functools.lru_cache(maxsize=32)
def parsed(text: str) -> BeautifulSoup:
    """The tree of a page, to be looked at only: every page is parsed once, however many lead to it."""
    return BeautifulSoup(text, "html.parser")


def parse(page: Path) -> BeautifulSoup:
    return parsed(page.read_text())


def faults(page: Path) -> list[str]:
    """Return what is wrong with a page, one line each."""
    text, tree = page.read_text(), parse(page)
    found = [f"<{tag.name}>" for tag in tree(["script", "iframe", "object", "embed", "link", "base"])]
    found += [f"{tag.name} from {tag['src'][:40]}" for tag in tree(src=re.compile("^(?!data:)"))]
    found += [f"style from {match}" for match in re.findall(r"@import|url\([^)]*\)", text)]
    found += [mark for mark in ("widget-view", "widget-state", "model_id") if mark in text]
    for tag in tree("img"):
        if not tag.get("alt") or tag["alt"].startswith("No description"):
            found.append("a figure without a text")
    for tag in tree("a", href=True):
        link = urlsplit(tag["href"])
        target = page.parent / unquote(link.path) if link.path else page
        if link.scheme not in ("", "http", "https"):
            found.append(f"a link to {tag['href']}")  # Markdown takes <message-id> for an address
        if not link.scheme and not target.exists():
            found.append(f"no {tag['href']}")
        elif not link.scheme and not target.resolve().is_relative_to(page.parent.resolve()):
            found.append(f"out of the site: {tag['href']}")
        elif not link.scheme and link.fragment and not parse(target)(id=unquote(link.fragment)):
            found.append(f"no such place: {tag['href']}")
    levels = [int(tag.name[1]) for tag in tree(re.compile("^h[1-6]$"))]
    if levels[:1] != [1] or levels.count(1) != 1:
        found.append("not one title")
    found += [f"h{b} after h{a}" for a, b in pairwise(levels) if b > a + 1]
    return found


@pytest.mark.parametrize("name", ["index", "00_first", "01_second"])
def test_a_small_site(folder, name):
    assert faults(folder / f"{name}.html") == []


def test_the_walkthrough(walkthrough):
    found = {page.name: faults(page) for page in sorted(walkthrough.glob("*.html"))}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert set(found) == {"index.html", *(f"{path.stem}.html" for path in notebooks.FOLDER.glob("*.ipynb"))}


@pytest.mark.parametrize("path", sorted(notebooks.FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_widget_of_the_walkthrough_has_its_twin(path):
    live, still = set(), set()
    for cell in notebooks.code_cells(notebooks.read(path)):
        for output in cell.outputs:
            name = output.get("data", {}).get("text/plain", "").partition("(")[0]
            if site.is_live(output):
                live.add(name)
            elif "text/html" in output.get("data", {}):
                still.add(name)
    assert live <= still


@pytest.mark.parametrize("path", sorted(notebooks.FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_lines_that_a_page_runs_make_the_widget_whose_twin_stands_there(path):
    stored = [
        "".join(output.data["text/html"])
        for cell in notebooks.code_cells(notebooks.read(path))
        if site.shown_still(cell.source)
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    made = []
    for html in site.shown(site.prepare(path.stem, notebooks.read(path))):
        for tag in BeautifulSoup(html, "html.parser")(class_="live"):
            *lines, last = tag["data-source"].split("\n")
            scope = {}
            exec("\n".join(lines), scope)
            made.append(eval(last, scope).static().html)
    assert made == stored


def test_the_walkthrough_is_light(walkthrough):
    figures = re.compile(r"data:image/png;base64,[^\"]*")
    weights = {page.name: len(figures.sub("", page.read_text())) for page in walkthrough.glob("*.html")}
    assert {name: weight for name, weight in weights.items() if weight > 400_000} == {}


def colours() -> dict[str, dict[str, str]]:
    """The pages' named colours in light, and in dark."""
    light, dark = re.split("@media", (build.PAGE / "colours.css").read_text())
    named = [dict(re.findall(r"--(\w+): (#\w+)", each)) for each in (light, dark)]
    assert named[0].keys() == named[1].keys()
    return {"light": named[0], "dark": named[1]}


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, as WCAG 2 defines it."""
    digits = colour.removeprefix("#")
    parts = [
        int(part, 16) / 255
        for part in re.findall("..", digits if len(digits) == 6 else "".join(2 * d for d in digits))
    ]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_what_wcag_says():
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_reads_on_every_ground(scheme):
    named = colours()[scheme]
    least = {"ink": 4.5, "link": 4.5, "soft": 4.5, "string": 4.5, "mark": 3}
    assert named.keys() == least.keys() | {"paper", "code", "rule"}
    for ground in ("paper", "code"):
        for name, ratio in least.items():
            assert contrast(named[name], named[ground]) >= ratio, (name, ground)


def test_contents(folder):
    entries = [tag.get_text() for tag in parse(folder / "index.html")(["h1", "dt", "dd"])]
    told = ["Bit 49 & others", "A guest wrote to 0x40002000, a private page.", "Second", "It is short."]
    assert entries == [site.TITLE, *told]


def test_a_notebook_called_index_is_the_first_page(tmp_path):
    pages = {"00_first": new_markdown_cell("# First"), "index": new_markdown_cell("# Two minutes")}
    site.write([site.prepare(name, new_notebook(cells=[cell])) for name, cell in pages.items()], tmp_path)
    assert sorted(page.name for page in tmp_path.iterdir()) == ["00_first.html", "index.html"]
    assert parse(tmp_path / "index.html").h1.get_text() == "Two minutes"
    assert [tag["href"] for tag in parse(tmp_path / "00_first.html").nav("a")] == ["index.html"]


def test_the_first_page_leads_to_every_other(walkthrough):
    links = {tag["href"].partition("#")[0] for tag in parse(walkthrough / "index.html").main("a")}
    assert {page.name for page in walkthrough.glob("*.html")} - links == {"index.html"}


def test_the_first_page_hands_out_the_project(walkthrough):
    (link,) = (
        tag["href"] for tag in parse(walkthrough / "index.html").main("a") if tag["href"].endswith(".gz")
    )
    with tarfile.open(walkthrough / link) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "README.md", "kvm_pf/entry.py", "notebooks/index.ipynb", "requirements.lock"} <= names


@pytest.mark.parametrize("tag", ["fold", "twin"])
def test_code_that_is_folded_can_be_opened(tag, tmp_path):
    cell = new_code_cell("1 + 1", metadata={"tags": [tag]}, outputs=[new_output("stream", text="2")])
    site.write([site.prepare("00_folded", new_notebook(cells=[new_markdown_cell("# A"), cell]))], tmp_path)
    folded = parse(tmp_path / "00_folded.html").details
    assert "1 + 1" in folded.get_text()
    assert "2" not in folded.pre.get_text()


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("index", ["00_first.html"]),
        ("00_first", ["index.html", "01_second.html"]),
        ("01_second", ["index.html", "00_first.html"]),
    ],
)
def test_the_way_through(folder, name, links):
    assert [[tag["href"] for tag in nav("a")] for nav in parse(folder / f"{name}.html")("nav")] == [links] * 2


def test_links_between_notebooks_become_links_between_pages(folder):
    links = [tag["href"] for tag in parse(folder / "00_first.html").main("a")]
    assert links[0] == "01_second.html#The-bits"
    assert links[1] == "data/cases/README.md"
    assert (folder / links[1]).read_bytes() == (notebooks.FOLDER.parent / links[1]).read_bytes()
    assert links[2].startswith("https://lore.kernel.org/")


def test_a_figure_is_told_by_its_own_text_or_the_paragraph_before_it(folder):
    said = "See the bits, the cases and the mail."
    images = parse(folder / "00_first.html")("img")
    assert [image["alt"] for image in images] == [said, 'WRITE & USER, "both"']
    assert {(image["width"], image["height"]) for image in images} == {tuple(map(str, SIZE))}


def test_the_twin_stands_and_the_live_widget_does_not(folder):
    text = (folder / "00_first.html").read_text()
    assert repr(WIDGET) not in text
    assert text.count("what each revision does with it") == 1
    assert "told" in text


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<main>", "<main><script>1</script>", "<script>"),
        ("<main>", '<link rel="stylesheet" href="a.css">', "<link>"),
        ("data:image/png", "https://example.org/x.png?", "img from https://example.org/x.png?;base64,iVBORw"),
        ("<style>", "<style>@import 'x'", "style from @import"),
        ("<style>", "<style>a {background: url(//x)}", "style from url(//x)"),
        ('alt="See the', 'alt="" title="See the', "a figure without a text"),
        ("<h1 ", "<h2 ", "not one title"),
        ("01_second.html#The-bits", "01_second.html#Bits", "no such place: 01_second.html#Bits"),
        ('href="index.html"', 'href="home.html"', "no home.html"),
        ('href="index.html"', 'href=".."', "out of the site: .."),
        ('href="index.html"', 'href="mailto:1@x"', "a link to mailto:1@x"),
        ("<main>", "<main>model_id", "model_id"),
    ],
)
def test_a_damaged_page_is_noticed(folder, old, new, fault):
    text = (folder / "00_first.html").read_text()
    damaged = folder / "damaged.html"
    damaged.write_text(text.replace(old, new))
    assert text.count(old)
    assert set(faults(damaged)) == {fault}


def test_a_page_says_so_if_what_runs_its_widgets_could_not_be_fetched(monkeypatch, tmp_path, capsys):
    def unfetched(*_):
        raise Unfetched("pyodide could not be fetched (no network)")

    monkeypatch.setattr(site.build, "site", unfetched)
    twin = new_output(
        "display_data", {"text/plain": repr(WIDGET.static()), "text/html": WIDGET.static().html}
    )
    pages = {
        "00_with": [new_markdown_cell("# With"), new_code_cell("widget.static()", outputs=[twin])],
        "01_without": [new_markdown_cell("# Without")],
    }
    pages = [site.prepare(name, new_notebook(cells=cells)) for name, cells in pages.items()]
    alive = site.bring_to_life(pages, tmp_path)
    site.write(pages, tmp_path, *alive)
    assert "pyodide could not be fetched (no network)" in capsys.readouterr().out
    assert faults(tmp_path / "00_with.html") == []
    assert "could not be fetched" in parse(tmp_path / "00_with.html").footer.get_text()
    assert parse(tmp_path / "01_without.html").footer is None


def test_the_command_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "small.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Small"), new_code_cell("6 * 7")]), path)
    stored = path.read_text()
    command = ["site.py", "--execute", "--output", str(tmp_path / "html"), str(path)]
    monkeypatch.setattr(sys, "argv", command)
    site.main()
    assert capsys.readouterr().out.endswith("html/index.html\n")
    assert "42</pre>" in (tmp_path / "html/small.html").read_text()
    assert path.read_text() == stored
