# SPDX-License-Identifier: GPL-2.0-only
"""Write the notebooks as a small linked site, which needs no kernel and no network.

    python tools/site.py              as they are stored
    python tools/site.py --execute    run first (the stored notebooks stay as they are)
    python tools/site.py --still      without live widgets, and so without any script
    python tools/site.py --output DIR [PATH...]

Every page stands alone: its style and its figures are inside it, and for each widget its still twin, `.static()`.
Scripts in the folder `live` beside the pages put the widget itself in the twin's place, computed in the reader's
browser (tools/live); where they cannot, the twin stays.
"""

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from base64 import b64decode
from collections.abc import Iterator, Sequence
from html import unescape
from os.path import relpath
from pathlib import Path
from shutil import copyfile
from struct import unpack
from typing import NamedTuple
from urllib.parse import unquote

from hatchling.builders.sdist import SdistBuilder
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html_mistune
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

import kvm_pf.show.widgets
from kvm_pf.common.text import escaped
from kvm_pf.show.markup import breakable
from tools import notebooks
from tools.live import build, licences
from tools.live.fetch import Unfetched
from tools.live.lines import lines_for, shown_still

TITLE = "kvm_pf: a KVM patch that you can run"
LEAD = "The walkthrough, to be read. Nothing runs here: where a notebook has a widget, you see how it stood."

LIVE = re.compile(rf"(?:{'|'.join(kvm_pf.show.widgets.__all__)})\(.*\)\Z", re.DOTALL)
"""How a widget calls itself in plain text; its twin adds words after the bracket."""

TEMPLATE = """\
{%- extends 'basic/index.html.j2' -%}
{%- macro links() -%}
<nav>
{%- if resources.page.name != 'index' %}
<a href="index.html">Contents</a>
{%- endif %}
{%- if resources.prev %}
<a rel="prev" href="{{ resources.prev.name }}.html">← {{ resources.prev.title | e }}</a>
{%- endif %}
{%- if resources.next %}
<a rel="next" href="{{ resources.next.name }}.html">{{ resources.next.title | e }} →</a>
{%- endif %}
</nav>
{%- endmacro -%}
{%- block header -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ resources.policy }}">
<title>{{ resources.page.title | e }}</title>
<style>{{ resources.style }}</style>
</head>
<body>
{{ links() }}
<main>
{%- endblock -%}
{%- block input -%}
{%- set tags = cell.metadata.get('tags', []) -%}
{%- if 'fold' in tags or 'twin' in tags -%}
<details class="code"><summary>the code</summary>{{ super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock input -%}
{%- block data_png -%}
{%- set about = output.metadata['image/png'] -%}
<div class="wide"><img src="data:image/png;base64,{{ output.data['image/png'] | replace('\\n', '') }}"
 alt="{{ about.alt | e }}" width="{{ about.width }}" height="{{ about.height }}"
 style="min-width:{{ about.width // 2 }}px"></div>
{%- endblock -%}
{%- block footer -%}
</main>
{{ links() }}
{%- if resources.about %}
<footer>{{ resources.about }}</footer>
{%- endif %}
{{ resources.scripts }}
</body>
</html>
{% endblock -%}
"""

STYLE = (
    build.own("colours.css")
    + """
body { margin: 0 auto; max-width: 70rem; padding: 0 1rem; font: 17px/1.55 Georgia, serif; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word }
main > .text_cell :is(p, ul, ol, dl, h1, h2, h3) { max-width: 44rem }
h1, h2, h3, nav { font-family: system-ui, sans-serif; line-height: 1.25 }
h1 { font-size: 1.7rem } h2 { font-size: 1.3rem; margin-top: 2.2rem }
h3 { font-size: 1.1rem; margin-top: 1.6rem } .text_cell pre { margin-bottom: .8rem }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; padding: .6rem 0; font-size: .9rem; line-height: 1.75 }
nav [rel=next] { margin-left: auto }
pre, code { font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }
pre { margin: 0; overflow-x: auto } .errno { white-space: nowrap }
details.code { margin: .6rem 0 }
details.code summary { font: .8rem/1.9 system-ui, sans-serif; color: var(--soft); cursor: pointer }
.kvm-pf summary { line-height: 2 }
.kvm-pf code { font-size: inherit }
.output_area .dataframe thead th { text-align: left }
.input_area { margin: 1rem 0 .4rem; padding: .5rem .8rem; background: var(--code);
  border-left: 4px solid var(--mark) }
.output_area { margin: .4rem 0; padding-left: 1rem; font: .85rem/1.45 system-ui, sans-serif }
.input_area, .output_text, .output_html, .wide { overflow-x: auto }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35 }
th, td { padding: .2rem .5rem; border: 1px solid var(--rule); text-align: left; vertical-align: top }
footer { margin: 0 0 1rem; font: .8rem/1.5 system-ui, sans-serif; color: var(--soft) }
dt { margin-top: 1rem; font-weight: bold } dd { margin: .2rem 0 0 1.2rem }
.k, .kn, .ow { font-weight: bold; color: var(--link) }
.s1, .s2, .sd, .sa, .si, .se { color: var(--string) }
.c1 { font-style: italic; color: var(--soft) }
@media (max-width: 30rem) { .input_area pre { white-space: pre-wrap } .output_area { padding-left: 0 }
  .output_area table { width: max-content } .output_area .kvm-pf table { width: auto }
  .output_area table.diff { min-width: 36rem } td:first-child:has(> br) { min-width: 9rem }
  .text_cell table { font-size: .8rem }
  .text_cell :is(th, td) { padding: .15rem .3rem }
  .text_cell td:first-child:has(> code) { min-width: 5.5rem }
  pre.line { white-space: pre-wrap; overflow-wrap: anywhere } }
@media print { nav { display: none } body { max-width: none; font-size: 11pt } pre { white-space: pre-wrap }
  .input_area, img, tr { break-inside: avoid } .wide img { min-width: 0 !important }
  .output_area table { font-size: 7pt !important }
  th, td { overflow-wrap: anywhere !important; padding: .1rem .3rem !important }
  th, td, td code { white-space: normal !important; font-size: inherit } }
"""
)


STILL = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
ALIVE = (
    "default-src 'none'; img-src data:; font-src data:; style-src 'self' 'unsafe-inline'; connect-src blob:; "
    "script-src 'self' blob: 'wasm-unsafe-eval'"
)
"""What a page may load, and from where: nothing, or scripts of its own folder, which may ask nobody for anything."""


RUNS = (
    "Where the browser can, the widgets of this page run in it, computed by the project’s own Python: "
    '<a href="live/licences.html">what runs here, and its licences</a>.'
)
UNFETCHED = (
    "The widgets of this page stand still: what runs them could not be fetched when this copy was made. "
    "<code>make walkthrough</code> runs them in JupyterLab."
)
"""What a page with widgets says at its end."""

LICENCES = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>What runs in these pages, and its licences</title>
<style>{style}</style>
</head>
<body>
<nav><a href="../index.html">Contents</a></nav>
<main>
<h1>What runs in these pages, and its licences</h1>
{table}
</main>
</body>
</html>
"""


class Page(NamedTuple):
    """A page of the site: its file's name without ending, its title and first sentence as text, what is on it."""

    name: str
    title: str
    sentence: str
    notebook: NotebookNode


def prepare(name: str, notebook: NotebookNode) -> Page:
    """Leave out live widgets; give each figure its size, and a text for those who do not see it.

    That text is the `alt` in the figure's own metadata, or else the paragraph before it.
    """
    title, said = name, []
    run: list[str] = []
    for cell in notebooks.normalise(notebook).cells:
        if cell.cell_type == "markdown":
            html = markdown2html_mistune(cell.source)
            title = next(map(plain, inside("h1", html)), title)
            said += map(plain, inside("p|li", html))
            continue
        run.append(cell.source)
        widget = shown_still(cell.source)
        cell.outputs = [output for output in cell.outputs if not is_live(output)]
        for output in cell.outputs:
            if widget and (html := output.get("data", {}).get("text/html")):
                source = escaped(lines_for(widget, run))
                output.data["text/html"] = f'<div class="live" data-source="{source}">{html}</div>'
            if png := output.get("data", {}).get("image/png"):
                width, height = unpack(">16x2I", b64decode(png[:32]))
                about = {"alt": said[-1] if said else name} | output.metadata.get("image/png", {})
                output.metadata["image/png"] = about | {"width": width, "height": height}
    return Page(name, title, first_sentence(said[0]) if said else "", notebook)


def is_live(output: NotebookNode) -> bool:
    """Say whether an output is a widget that needs a kernel, and so no more than its name without one."""
    data = output.get("data", {})
    return list(data) == ["text/plain"] and LIVE.match(data["text/plain"]) is not None


def has_widgets(page: Page) -> bool:
    """Say whether a page has a widget's still twin."""
    return any('<div class="live"' in html for html in shown(page))


def shown(page: Page) -> Iterator[str]:
    """Yield what the cells of a page show as HTML."""
    for cell in notebooks.code_cells(page.notebook):
        for output in cell.outputs:
            yield output.get("data", {}).get("text/html", "")


def inside(names: str, html: str) -> list[str]:
    """Return what is inside the elements of these names."""
    return re.findall(rf"<(?:{names})\b[^>]*>(.*?)</(?:{names})>", html, re.DOTALL)


def plain(html: str) -> str:
    """Return the text in HTML, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).removesuffix("¶").split())


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return re.split(r"(?<=[.?!])\s+(?=\W?[A-Z])", text)[0]


def contents(pages: Sequence[Page]) -> Page:
    """Return a first page for notebooks among which none is named index: it leads to the others."""
    text = [f"# {TITLE}", "", LEAD, "", "<dl>"]
    for page in pages:
        text.append(f'<dt><a href="{page.name}.html">{escaped(page.title)}</a></dt>')
        text.append(f"<dd>{escaped(page.sentence)}</dd>")
    return Page("index", TITLE, LEAD, new_notebook(cells=[new_markdown_cell("\n".join([*text, "</dl>"]))]))


def write(pages: Sequence[Page], folder: Path, scripts: str = "", about: str = "") -> None:
    """Write the pages into the folder, the index first, each linked to the one before and the one after.

    Files of the repository that they link to (`../data/…`) are copied beside them, so that no link leads out.

    `scripts` is what brings a page's widgets to life, as HTML, and `about` says at a page's end what runs it, or why
    nothing does; pages without a widget go without them.
    """
    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True)
    folder.mkdir(parents=True, exist_ok=True)
    first = next((page for page in pages if page.name == "index"), None) or contents(pages)
    pages = [page for page in pages if page is not first]
    for before, page, after in zip([None, None, *pages], [first, *pages], [*pages, None], strict=False):
        widgets = has_widgets(page)
        alive = bool(scripts) and widgets
        resources = {
            "page": page, "prev": before, "next": after, "style": STYLE + (build.style() if alive else ""),
            "policy": ALIVE if alive else STILL, "scripts": scripts if alive else "",
            "about": about if widgets else "",
        }  # fmt: skip
        html, _ = exporter.from_notebook_node(page.notebook, resources)
        html = re.sub(r'(href="[^":]+)\.ipynb\b', r"\1.html", html)
        html = re.sub(r'(?<=href=")\.\./([^"#]+)', lambda link: carried(link[1], folder), html)
        html = re.sub(r"(<table.*?</table>)", r'<div class="wide">\1</div>', html, flags=re.DOTALL)
        html = re.sub(r"<pre>(?=[^\n]*\n?</pre>)", '<pre class="line">', html)
        html = re.sub("(?<=<code>)[^<]+(?=</code>)", lambda code: str(breakable(unescape(code[0]))), html)
        html = html.replace("<code>-E", '<code class="errno">-E')
        html = re.sub(r'<a class="anchor-link".*?</a>', "", html)
        (folder / f"{page.name}.html").write_text(html)


def carried(name: str, folder: Path) -> str:
    """Copy a file of the repository that a page links to beside the pages; return where it is there.

    The README stands for the project: in its place goes the source archive, which holds all of it.
    """
    root = notebooks.FOLDER.parent
    if name == "README.md":
        return next(Path(archive).name for archive in SdistBuilder(str(root)).build(directory=str(folder)))
    copy = folder / unquote(name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copyfile(root / unquote(name), copy)
    return name


def bring_to_life(pages: Sequence[Page], folder: Path) -> tuple[str, str]:
    """Write the scripts that the pages' widgets need into `folder`/live.

    Returns what a page has to load them by, and what it has to say of them, as HTML.  If they cannot be had nothing
    is written, and the page says so.
    """
    if not any(map(has_widgets, pages)):
        return "", ""
    try:
        scripts = build.site(folder / "live", "\n".join(html for page in pages for html in shown(page)))
    except Unfetched as error:
        print(f"without live widgets: {error}")
        return "", UNFETCHED
    table = re.sub(r"(<table.*?</table>)", r'<div class="wide">\1</div>', licences.table(), flags=re.DOTALL)
    html = LICENCES.format(policy=escaped(STILL), style=STYLE, table=table)
    (folder / "live/licences.html").write_text(html, encoding="utf-8")
    return scripts, RUNS


def main() -> None:
    """Do what the command line asks."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--execute", action="store_true", help="run the notebooks first")
    parser.add_argument("--still", action="store_true", help="no live widgets, no scripts")
    parser.add_argument("--output", type=Path, default=notebooks.FOLDER.parent / "build/html")
    parser.add_argument("path", nargs="*", type=Path, help="notebooks (default: all of them)")
    arguments = parser.parse_args()
    take = notebooks.execute if arguments.execute else notebooks.read
    paths = arguments.path or sorted(notebooks.FOLDER.glob("*.ipynb"))
    pages = [prepare(path.stem, take(path)) for path in paths]
    alive = ("", "") if arguments.still else bring_to_life(pages, arguments.output)
    write(pages, arguments.output, *alive)
    print(f"written: {relpath(arguments.output / 'index.html')}")


if __name__ == "__main__":
    main()
