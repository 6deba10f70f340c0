# SPDX-License-Identifier: GPL-2.0-only
"""The notebooks in JupyterLab, in a real browser: they run clean, and their widgets answer a person.

One server, one browser, one page for all of this, and a copy of the notebooks, so that nothing here changes them.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import ConsoleMessage, Locator, Page, Route, expect, sync_playwright

from tools import notebooks, site

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))


def named(path: Path) -> list[str]:
    """What the widgets that a notebook shows call themselves, in order."""
    stored = [output for cell in notebooks.code_cells(notebooks.read(path)) for output in cell.outputs]
    return [output.data["text/plain"] for output in stored if site.is_live(output)]


RUN = [path for path in NOTEBOOKS if path.stem == "index" or named(path)]
"""The first page, and those with widgets; what the others print is the same without JupyterLab, see `make nbval`."""

TOKEN = "only-on-loopback"

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # keep also what is scrolled out of sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

SECONDS = 30
"""How long a page may take to show what it must, on a machine with other things to do."""

HARMLESS: dict[str, str] = {
    "Could not restore the debugger state: Canceled future": "a kernel was restarted while JupyterLab asked it",
}
"""Patterns of complaints that are none of the notebooks' fault, each with the reason."""

TRACE = "trace_reader('kvm_page_fault: address febd0000 error_code 181')"

WIDGETS = (
    "error_code_explorer(0x6)",
    "fault_explorer('posted', 0x6, vm_type='sw-protected', private=True)",
    "step_player(kvm_pf.explain(0x6, vm_type='sw-protected', private=True))",
    "hunk_viewer()",
    "corpus_browser()",
    "scenario_player('posted-on-6.12', '2-swprot')",
    TRACE,
    "patch_checker()",
    "claim_asker()",
    "your_turn('sanitize')",
)

BAD = (
    "from IPython.display import HTML, Javascript, display",
    'Javascript(\'console.error("said aloud"); setTimeout(() => { throw Error("said by throwing") })\')',
    "HTML('<img src=\"https://example.org/x.png\">')",
    f"display({{{notebooks.WIDGET_VIEW!r}: {{'model_id': 'none', 'version_major': 2}}, 'text/plain': ''}}, raw=True)",
    "1 / 0",
    "'never run'",
)


def store(path: Path, *sources: str) -> None:
    """Write a notebook with these cells, not run."""
    nbformat.write(
        notebooks.normalise(new_notebook(cells=[new_code_cell(source) for source in sources])), path
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the notebooks, with three of our own: with one widget, with every widget, with every fault."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    shutil.copytree(notebooks.FOLDER, folder, ignore=shutil.ignore_patterns(".*", "_*"))
    imports = "import kvm_pf\nfrom kvm_pf.show.widgets import *"
    store(folder / "first.ipynb", imports, WIDGETS[0])
    store(folder / "widgets.ipynb", imports, *WIDGETS)
    store(folder / "bad.ipynb", *BAD)
    return folder


@pytest.fixture(scope="module")
def server(folder, root) -> Iterator[str]:
    """A JupyterLab on a free port of this machine, which keeps its own files beside the notebooks."""
    for name, values in SETTINGS.items():
        path = folder.parent / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    kinds = (
        "JUPYTER_CONFIG",
        "JUPYTER_DATA",
        "JUPYTER_RUNTIME",
        "JUPYTERLAB_SETTINGS",
        "JUPYTERLAB_WORKSPACES",
    )
    own = {f"{kind}_DIR": str(folder.parent / kind.partition("_")[2].lower()) for kind in kinds}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": TOKEN,
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        *(f"--{k}={v}" for k, v in options.items()),
    ]
    environment = {**os.environ, **own, "IPYTHONDIR": str(folder.parent / "ipython"), "PYTHONPATH": str(root)}
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield wait_for(process, f"http://127.0.0.1:{port}", folder.parent / "log")
    finally:
        process.terminate()
        process.wait(SECONDS)


def wait_for(process: subprocess.Popen[bytes], address: str, log: Path) -> str:
    """Return the address once somebody answers there."""
    for _ in range(10 * SECONDS):
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(f"{address}/api?token={TOKEN}"):
                return address
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(log.read_text())


class Lab:
    """One page of JupyterLab; `complaints` is what was complained of since it was last asked."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.kernel = ""
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", self.hear)
        page.on("pageerror", lambda error: self.complain(f"page error: {error}"))
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), self.refuse)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complain(f"console: {message.text}")

    def refuse(self, route: Route) -> None:
        self.complain(f"asked for {route.request.url}")
        route.abort()

    def complain(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in HARMLESS):
            self.complaints.append(text)

    def load(self, name: str = "") -> None:
        """Load the page anew, with this notebook open, or none."""
        self.page.goto(f"{self.address}/lab{name and '/tree/'}{name}?token={TOKEN}")
        self.page.wait_for_function(LOADED, arg=name)

    def start(self, name: str, kernel: str = "") -> None:
        """Open a notebook with a new kernel, or with one that runs already."""
        with notebooks.kernel_start():
            self.kernel = self.page.evaluate(START, [name, kernel])

    def run(self) -> None:
        """Run all cells; do not wait for them."""
        self.page.evaluate("() => { window.done = jupyterapp.commands.execute('notebook:run-all-cells') }")

    def read(self) -> nbformat.NotebookNode:
        """Return the notebook once it has run, each cell with the number of widgets `drawn` in it."""
        return nbformat.from_dict({"cells": self.page.evaluate(READ)})

    def leave(self) -> None:
        """Close the notebook, and make its kernel as good as new."""
        self.page.evaluate(LEAVE, RESET)

    def stop(self) -> None:
        """Close the notebook and end its kernel."""
        self.page.evaluate(STOP)
        self.kernel = ""

    def cell(self, number: int) -> Locator:
        """The output of a cell of the open notebook, counted from 0."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(number)


LOADED = """name => {
    const app = window.jupyterapp;
    return ['docmanager:open', 'notebook:run-all-cells'].every(command => app?.commands.hasCommand(command))
        && (!name || app.shell.currentWidget?.context?.path === name);
}"""

START = """async ([path, id]) => {
    await jupyterapp.restored;
    const kernel = id ? {id} : undefined;
    window.panel = await jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook', kernel});
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    while (jupyterapp.shell.currentWidget !== panel) {
        jupyterapp.shell.activateById(panel.id);
        await new Promise(go => setTimeout(go, 50));
    }
    return panel.sessionContext.session.kernel.id;
}"""

READ = """async () => {
    await window.done;
    const drawn = node => node.querySelectorAll('.jp-OutputArea-output > .jupyter-widgets').length;
    const cells = () => panel.content.model.sharedModel.toJSON().cells;
    const wanted = JSON.stringify(cells()).split('"model_id"').length - 1;
    for (let n = 0; n < 50 && drawn(panel.node) < wanted; n++) await new Promise(go => setTimeout(go, 100));
    return cells().map((cell, n) => ({...cell, drawn: drawn(panel.content.widgets[n].node)}));
}"""

SHOWS = """wanted => {
    const shown = panel.content.widgets.map(cell => cell.node.querySelectorAll('.jp-OutputArea-output').length);
    const pictures = [...panel.node.querySelectorAll('.jp-OutputArea-output img')];
    return `${shown}` === `${wanted}` && pictures.every(picture => picture.complete && picture.naturalWidth);
}"""

LEAVE = """async code => {
    await panel.sessionContext.session.kernel.requestExecute({code, silent: true}).done;
    panel.dispose();
}"""

RESET = "import ipywidgets; ipywidgets.Widget.close_all(); get_ipython().reset()"

STOP = """async () => {
    await panel.sessionContext.shutdown();
    panel.dispose();
}"""


def findings(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what is wrong with a notebook that was run, one sentence each."""
    found = list(notebooks.findings(notebook))
    for number, cell in enumerate(notebook.cells, 1):
        wanted = len(list(views(cell)))
        if cell.drawn != wanted:
            found.append(f"c{number:02d} shows {cell.drawn} of {wanted} widgets")
    return found


def views(cell: nbformat.NotebookNode) -> Iterator[str]:
    """Yield what the widgets that a cell shows call themselves."""
    for output in cell.get("outputs", []):
        if notebooks.WIDGET_VIEW in output.get("data", {}):
            yield output.data["text/plain"]


@pytest.fixture(scope="module")
def lab(chromium, server) -> Iterator[Lab]:
    """JupyterLab in the browser, nothing open."""
    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        lab = Lab(browser.new_page(viewport={"width": 1280, "height": 900}), server)
        lab.load()
        yield lab
        browser.close()


@pytest.fixture
def quiet(lab) -> Iterator[Lab]:
    """The page, which must not complain of anything during the test."""
    lab.complaints.clear()
    yield lab
    assert lab.complaints == []


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_notebook_runs_clean_and_draws_its_widgets(quiet, path):
    """One kernel does for all, emptied in between; nbval gives each notebook a kernel of its own."""
    quiet.start(path.name, quiet.kernel)
    quiet.run()
    ran = quiet.read()
    assert findings(ran) == []
    assert [name for cell in ran.cells for name in views(cell)] == named(path)
    quiet.leave()


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path not in RUN], ids=lambda path: path.stem)
def test_a_page_without_widgets_shows_all_that_it_is_kept_with(quiet, path):
    quiet.start(path.name, quiet.kernel)
    outputs = [len(cell.get("outputs", [])) for cell in notebooks.read(path).cells]
    quiet.page.wait_for_function(SHOWS, arg=outputs)
    assert findings(quiet.read()) == []
    quiet.leave()


def test_whatever_is_wrong_is_noticed(lab):
    lab.complaints.clear()
    lab.start("bad.ipynb")
    lab.run()
    assert findings(lab.read()) == [
        "c05 ends in ZeroDivisionError",
        "c06 was not run",
        "c04 shows 0 of 1 widgets",
    ]
    assert {complaint.split("\n")[0] for complaint in lab.complaints} == {
        "console: said aloud",
        "page error: said by throwing",
        "asked for https://example.org/x.png",
        "console: Failed to load resource: net::ERR_FAILED",
        "console: Error: widget model not found",
    }
    lab.stop()


# Each kind of widget, operated as a person would.  What is expected is read off the sources, not off the page.


@pytest.fixture(scope="module")
def opened(lab) -> None:
    """Open the notebook with every widget and run it."""
    lab.load("widgets.ipynb")
    lab.start("widgets.ipynb")
    lab.run()
    assert findings(lab.read()) == []


@pytest.fixture
def cell(quiet, opened) -> Callable[[int], Locator]:
    """The outputs of that notebook, by number."""
    return quiet.cell


def test_the_first_widget_answers_soon(quiet):
    start = time.monotonic()
    quiet.start("first.ipynb")
    quiet.run()
    first = quiet.cell(1)
    first.get_by_role("button", name="bit 0, PRESENT").click()
    expect(first.get_by_label("code", exact=True)).to_have_value("0x7")
    print(f"the first widget answered {time.monotonic() - start:.1f} s after its notebook was opened")
    quiet.stop()


def test_error_code_explorer(cell):
    explorer = cell(1)
    code = explorer.get_by_label("code", exact=True)
    code.fill("WRITE|USER|GUEST_FINAL")
    code.press("Enter")
    expect(code).to_have_value("0x100000006")
    expect(explorer.get_by_role("button", name="bit 32, GUEST_FINAL, set", pressed=True)).to_be_visible()
    explorer.get_by_role("button", name="bit 49, PRIVATE_ACCESS, clear", pressed=False).click()
    expect(code).to_have_value("0x2000100000006")
    expect(explorer.get_by_role("button", name="bit 49, PRIVATE_ACCESS, set", pressed=True)).to_be_visible()
    expect(explorer.get_by_role("paragraph").first).to_contain_text("WRITE|USER|GUEST_FINAL|PRIVATE_ACCESS")
    answers = explorer.get_by_role("table", name="what each revision does with it")
    expect(answers.get_by_role("row", name=re.compile("^posted "))).to_contain_text("drops PRIVATE_ACCESS")
    expect(answers.get_by_role("row", name=re.compile("^before "))).not_to_contain_text("drops")


def test_error_code_explorer_complains_and_goes_on(cell):
    explorer = cell(1)
    code = explorer.get_by_label("code", exact=True)
    code.fill("0x1ffffffffffffffff")
    code.press("Enter")
    expect(explorer.get_by_role("alert")).to_contain_text("up to 16 hexadecimal digits")
    code.fill("0x6")
    code.press("Enter")
    expect(explorer.get_by_role("alert")).to_have_count(0)
    expect(explorer.get_by_role("button", name="bit 1, WRITE, set")).to_be_visible()


def test_error_code_explorer_by_keyboard(cell, lab):
    explorer, keys = cell(1), lab.page.keyboard
    code, bits = explorer.get_by_label("code", exact=True), explorer.locator(".kvm-pf-bits")

    def bit(name: str) -> Locator:
        return bits.get_by_role("button", name=f"bit {name}")

    code.focus()
    keys.press("Control+A")
    keys.type("8000000000000006")
    keys.press("Enter")
    expect(bit("63, set")).to_be_visible()
    keys.press("Tab")
    expect(explorer.get_by_label("read as")).to_be_focused()
    for key in ("Space", "ArrowDown", "Enter"):
        keys.press(key)
    expect(explorer.get_by_role("table", name="the error code it becomes")).to_be_visible()
    expect(bit("8, GVA_TRANSLATED, clear")).to_be_visible()
    for key in ("Space", "ArrowUp", "Enter"):
        keys.press(key)
    expect(explorer.get_by_role("table", name="the error code it becomes")).to_have_count(0)
    keys.press("Tab")
    bits.get_by_role("button").and_(explorer.locator("[tabindex='0']")).focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowLeft"):
        keys.press(key)
    here = bits.locator("[tabindex='0']")
    expect(here).to_be_focused()
    number = int(here.get_attribute("aria-label").split()[1].rstrip(","))
    expect(here).to_have_attribute("aria-pressed", "true" if 0x8000000000000006 >> number & 1 else "false")
    keys.press("Space")
    expect(code).to_have_value(f"{0x8000000000000006 ^ 1 << number:#x}")
    keys.press("Enter")
    expect(code).to_have_value("0x8000000000000006")


def test_bits_are_eight_to_a_row_on_a_phone(cell, lab):
    page, bits = lab.page, cell(1).get_by_role("group", name="the 64 bits")
    page.evaluate(FILES)
    page.set_viewport_size({"width": 390, "height": 844})
    boxes = [button.bounding_box() for button in bits.get_by_role("button").all()]
    assert len({box["y"] for box in boxes}) == 8
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert bits.evaluate("grid => grid.scrollWidth <= grid.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.evaluate(FILES)


FILES = "() => jupyterapp.commands.execute('application:toggle-left-area')"
"""Hide the list of files beside the notebook, or show it."""


@pytest.mark.parametrize(
    "number", range(1, 1 + len(WIDGETS)), ids=[name.partition("(")[0] for name in WIDGETS]
)
def test_settings_and_their_effect_are_on_one_screen(cell, lab, number):
    lab.page.set_viewport_size({"width": 1280, "height": 800})
    screen = lab.page.locator(".jp-WindowedPanel-outer:visible").bounding_box()["height"]
    assert cell(number).locator(".jp-OutputArea").bounding_box()["height"] < screen


def test_fault_explorer(cell):
    explorer = cell(2)
    path = explorer.get_by_role("table", name="the path")
    expect(path.get_by_role("row", name="mark_private")).to_contain_text("0x6 → 0x2000000000006")
    explorer.get_by_label("revision").select_option("before")
    expect(path.get_by_role("row", name="▲ is_private")).to_contain_text("by attribute")
    expect(path).not_to_contain_text("0x2000000000006")
    explorer.get_by_label("page is private").click()
    expect(path.get_by_role("row", name="▲ is_private")).to_contain_text("shared")
    explorer.get_by_label("error code", exact=True).fill("RSVD|USER")
    explorer.get_by_label("error code", exact=True).press("Enter")
    expect(path.get_by_role("row", name="▲ handle_mmio_page_fault")).to_be_visible()
    expect(explorer.get_by_role("paragraph").filter(has_text="gone: ")).to_be_visible()
    explorer.get_by_role("button", name="bit 3, RSVD, set").click()
    expect(explorer.get_by_label("error code", exact=True)).to_have_value("0x4")
    expect(path).not_to_contain_text("handle_mmio_page_fault")


def test_fault_explorer_by_keyboard(cell, lab):
    explorer, keys = cell(2), lab.page.keyboard
    private = explorer.get_by_label("page is private")
    private.focus()
    before = private.is_checked()
    keys.press("Space")
    expect(private).to_be_checked(checked=not before)
    keys.press("Tab")
    expect(explorer.get_by_label("paging")).to_be_focused()
    explorer.get_by_role("button", name="bit 49, PRIVATE_ACCESS").focus()
    keys.press("Space")
    expect(explorer.get_by_label("error code", exact=True)).to_have_value("0x2000000000004")
    keys.press("Space")


def test_letters_typed_into_a_widget_are_no_commands_to_jupyterlab(cell, lab):
    cells, page = "panel.content.widgets.length", lab.page
    before = page.evaluate(cells)
    for name in ("MMIO", "page is private"):
        cell(2).locator(".kvm-pf-panel").first.click(position={"x": 3, "y": 3})
        page.keyboard.press("Escape")
        cell(2).get_by_label(name).focus()
        for key in "bb":  # insert a cell below
            page.keyboard.press(key)
        assert page.evaluate(cells) == before
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.classList.contains('jp-Cell')")


def test_step_player(cell, lab):
    player, keys = cell(3), lab.page.keyboard
    here = player.get_by_role("row", name="▶")
    forth, back = (player.get_by_role("button", name=name) for name in ("forth", "back"))
    expect(here).to_contain_text("kvm_mmu_page_fault")
    forth.click()
    expect(here).to_contain_text("route")
    forth.focus()
    keys.press("Enter")
    expect(here).to_contain_text("sanitize")
    keys.press("Space")
    expect(here).to_contain_text("root_is_valid")
    expect(player.get_by_role("table", name="this step: root_is_valid")).to_be_visible()
    back.click()
    expect(here).to_contain_text("sanitize")
    player.get_by_role("button", name="play from this step").click()
    expect(here).to_contain_text("mark_private")
    player.get_by_role("button", name="stop at this step").click()
    player.get_by_role("slider", name="step").press("ArrowLeft")
    expect(here).not_to_contain_text("mark_private")


def test_hunk_viewer(cell):
    viewer = cell(4)
    expect(viewer.get_by_role("table", name="hunk 1: 11 lines added, 0 removed")).to_be_visible()
    viewer.get_by_label("show").select_option(index=2)
    expect(viewer.get_by_role("table", name="hunk 3: 1 lines added, 1 removed")).to_be_visible()
    expect(viewer.get_by_role("table").last).to_contain_text("PFERR_PRIVATE_ACCESS")


def test_corpus_browser(cell):
    browser = cell(5)
    found, words = (
        browser.get_by_role("paragraph").filter(has_text=re.compile(r"^\d+ of \d+ cases$")),
        browser.get_by_label("outcome or words"),
    )
    everything = int(found.inner_text().split()[2])
    browser.get_by_label("kind").select_option("cases")
    browser.get_by_label("flag").select_option("bit49")
    expect(found).not_to_contain_text(f"{everything} of")
    words.fill("no such words")
    words.press("Enter")
    expect(found).to_have_text(f"0 of {everything} cases")
    expect(browser.get_by_role("button", name="open")).to_be_disabled()
    words.fill("")
    words.press("Enter")
    browser.get_by_label("case", exact=True).press("ArrowDown")
    browser.get_by_role("button", name="open").click()
    expect(browser.get_by_role("table", name="the path")).to_be_visible()
    expect(browser.get_by_label("error code", exact=True)).to_have_value(
        re.compile("^0x[0-9a-f]*[2367abef][0-9a-f]{12}$")
    )


def test_scenario_player(cell):
    player = cell(6)
    expect(player.get_by_role("paragraph").first).to_contain_text("vm swprot")
    for _ in range(4):
        player.get_by_role("button", name="forth").click()
    expect(player.get_by_role("paragraph").first).to_contain_text("fault 3 of 6")
    expect(player.get_by_role("table", name="0 differ")).to_be_visible()


def test_trace_reader_by_keyboard(cell, lab):
    reader, keys = cell(WIDGETS.index(TRACE) + 1), lab.page.keyboard
    expect(reader).to_contain_text("a read, on a page that is not mapped")
    reader.get_by_label("lines").focus()
    keys.press("Control+A")
    keys.insert_text("> kvm_page_fault: vcpu 3 rip 0x1000\n> address 0x5000 error_code 0x100000014")
    keys.press("Tab")
    expect(reader.get_by_role("button", name="read", exact=True)).to_be_focused()
    expect(reader.get_by_role("table")).to_contain_text("an instruction fetch, on a page that is not mapped")
    reader.get_by_label("lines").fill("good morning")
    keys.press("Tab")
    expect(reader.get_by_role("alert")).to_contain_text("no event of KVM's page faults in 1 line")
    expect(reader.get_by_role("table")).to_contain_text("an instruction fetch")
    reader.get_by_label("picture").select_option("how they ended, by access")
    expect(reader.get_by_role("img", name="how they ended, by access")).to_be_visible()


def test_trace_reader_takes_a_file(cell, lab, root):
    reader = cell(WIDGETS.index(TRACE) + 1)
    with lab.page.expect_file_chooser() as chosen:
        reader.get_by_role("button", name=re.compile(r"file \(0\)")).click()
    chosen.value.set_files(root / "data" / "recordings" / "6.12" / "2-swprot.trace.gz")
    expect(reader).to_contain_text("34 faults in 2-swprot.trace.gz, of an AMD CPU")
    expect(reader.get_by_role("alert")).to_have_count(0)


def test_patch_checker(cell):
    checker = cell(WIDGETS.index("patch_checker()") + 1)
    box = checker.get_by_label("mail or diff")
    box.fill("--- a/x.c\n+++ b/x.c\n@@ -1,1 +1,1 @@\n-int a;\n+int b;\n")
    checker.get_by_role("button", name="check").click()
    expect(checker.get_by_role("paragraph").first).to_contain_text("another patch")
    expect(checker.get_by_role("table", name="what it touches")).to_contain_text("x.c")


def test_claim_asker(cell):
    asker = cell(WIDGETS.index("claim_asker()") + 1)
    asker.get_by_label("of", exact=True).select_option("before")
    asker.get_by_role("button", name="ask the solver").click()
    expect(asker.get_by_role("paragraph").filter(has_text="before: fails")).to_be_visible()
    expect(asker.get_by_role("table", name="the steps in this state")).to_be_visible()


def test_your_turn(cell):
    turn = cell(WIDGETS.index("your_turn('sanitize')") + 1)
    text, run = turn.get_by_label("the step"), turn.get_by_role("button", name="run")
    expect(text).to_have_value(re.compile("return error_code, 0"))
    text.fill("def sanitize(error_code):\n    return eror_code, 0")
    run.click()
    expect(turn.get_by_role("alert")).to_contain_text("line 2: the path has no name eror_code; did you mean")
    text.fill("def sanitize(error_code):\n    return error_code, 0")
    run.click()
    expect(
        turn.get_by_role("status").filter(
            has_text=re.compile(r"[1-9]\d* of \d+ cases notice; [1-9]\d* of \d+ claims fall")
        )
    ).to_be_visible()
    expect(turn.get_by_role("row", name="sanitiser-is-a-mask")).to_contain_text("What leaves the sanitiser")
    expect(turn.get_by_role("columnheader", name="with your step")).to_be_visible()
    turn.get_by_role("button", name="as it was").click()
    expect(text).to_have_value(re.compile("PFERR_SYNTHETIC_MASK"))
