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
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import ConsoleMessage, Locator, Page, Route, expect, sync_playwright

from tools import notebooks, site

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))

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

HARMLESS: dict[str, str] = {}
"""Patterns of complaints that are none of the notebooks' fault, each with the reason."""

WIDGETS = (
    "error_code_explorer(0x6)",
    "fault_explorer('posted', 0x6, vm_type='sw-protected', private=True)",
    "step_player(kvm_pf.explain(0x6, vm_type='sw-protected', private=True))",
    "hunk_viewer()",
    "corpus_browser()",
    "scenario_player('posted-on-6.12', '2-swprot')",
)

BAD = (
    "from IPython.display import HTML, Javascript, display",
    "Javascript('console.error(\"said aloud\")')",
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
    """A copy of the notebooks, with two of our own: one with every widget, one with every fault."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    shutil.copytree(notebooks.FOLDER, folder, ignore=shutil.ignore_patterns(".*", "_*"))
    store(folder / "widgets.ipynb", "import kvm_pf\nfrom kvm_pf.widgets import *", *WIDGETS)
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
        process.wait()


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

    def load(self) -> None:
        """Load the page anew, with nothing open."""
        self.page.goto(f"{self.address}/lab?reset&token={TOKEN}")
        self.page.wait_for_function("window.jupyterapp?.restored.then(() => true)")

    def start(self, name: str) -> None:
        """Open a notebook with a new kernel."""
        with notebooks.kernel_start():
            self.page.evaluate(START, name)

    def run(self) -> nbformat.NotebookNode:
        """Run all cells; return the notebook, each cell with the number of widgets `drawn` in it."""
        return nbformat.from_dict({"cells": self.page.evaluate(RUN)})

    def stop(self) -> None:
        """Close the notebook and end its kernel."""
        self.page.evaluate(STOP)

    def cell(self, number: int) -> Locator:
        """The output of a cell of the open notebook, counted from 0."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(number)


START = """async path => {
    const panel = await jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'});
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
}"""

RUN = """async () => {
    await jupyterapp.commands.execute('notebook:run-all-cells');
    const {content} = jupyterapp.shell.currentWidget;
    const views = node => [...node.querySelectorAll('[data-mime-type*="widget-view"]')];
    const isDrawn = view => view.querySelector('.jupyter-widgets') !== null;
    for (let n = 0; n < 100 && !views(content.node).every(isDrawn); n++) await new Promise(go => setTimeout(go, 100));
    return content.model.sharedModel.toJSON().cells
        .map((cell, n) => ({...cell, drawn: views(content.widgets[n].node).filter(isDrawn).length}));
}"""

STOP = """async () => {
    const panel = jupyterapp.shell.currentWidget;
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
def lab(server, chromium) -> Iterator[Lab]:
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_clean_and_draws_its_widgets(quiet, path):
    quiet.start(path.name)
    ran = quiet.run()
    assert findings(ran) == []
    stored = [output for cell in notebooks.code_cells(notebooks.read(path)) for output in cell.outputs]
    assert [view for cell in ran.cells for view in views(cell)] == [
        output.data["text/plain"] for output in stored if site.is_live(output)
    ]
    quiet.stop()


def test_whatever_is_wrong_is_noticed(lab):
    lab.start("bad.ipynb")
    ran = lab.run()
    assert findings(ran) == []
    assert lab.complaints == []
    lab.stop()
