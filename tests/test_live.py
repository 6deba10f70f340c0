# SPDX-License-Identifier: GPL-2.0-only
"""The site's widgets, alive in a real browser: the same to the byte as here, with nobody else asked for anything."""

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from kvm_pf.conformance.cases import read_cases, run_case
from tools import notebooks, site
from tools.live import build, pocket
from tools.live.fetch import Unfetched

pytestmark = pytest.mark.browser

SECONDS = 60
"""How long a page may take to start Python, on a machine with other things to do."""

SHOWN = ("00_one_real_fault", "01_the_bits")
"""The pages that are looked at; the widgets of all pages are made in the first."""

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The site with live widgets, in a folder whose name takes quoting."""
    folder = tmp_path_factory.mktemp("a site")
    pages = [site.prepare(path.stem, notebooks.read(path)) for path in NOTEBOOKS]
    try:
        scripts = build.site(folder / "live", "\n".join(html for page in pages for html in site.shown(page)))
    except Unfetched as error:
        pytest.skip(f"no live widgets: {error}")
    site.write([page for page in pages if page.name in SHOWN], folder, scripts)
    return folder


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    """The address of that folder in a folder of a static host on this machine."""

    class Host(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Host, directory=folder.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_address[1]}/{quote(folder.name)}"
        host.shutdown()


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Browser, url: str, **settings: object) -> tuple[Page, list[str]]:
    """Open an address in a new browser profile; return the page, and what it complains of from now on.

    Every request to anywhere but the site's own folder is refused, and complained of.
    """
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **settings).new_page()
    own, complaints = url.rpartition("/")[0], []

    def refuse(route):
        complaints.append(f"asked for {route.request.url}")
        route.abort()

    page.set_default_timeout(1000 * SECONDS)
    page.on("console", lambda m: m.type == "error" and complaints.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
    page.route(lambda asked: not asked.startswith((own, "data:", "blob:")), refuse)
    page.goto(url)
    return page, complaints


def alive(page: Page) -> None:
    """Wait until all widgets of a page are alive."""
    page.wait_for_function("() => [...document.querySelectorAll('.live')].every(e => e.dataset.state)")
    assert page.locator(".live:not([data-state=live])").count() == 0


READS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((part, n) => part * a + below[n] * (1 - a));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (tag) =>
    tag ? over(parts(getComputedStyle(tag).backgroundColor), ground(tag.parentElement)) : [255, 255, 255];
  const faint = (tag) => {
    const below = ground(tag);
    const both = [over(parts(getComputedStyle(tag).color), below), below].map(luminance).sort((a, b) => a - b);
    return (both[1] + 0.05) / (both[0] + 0.05) < 4.5;
  };
  const said = (tag) => [...tag.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const tags = [...document.body.querySelectorAll("*")].filter((tag) => tag.checkVisibility());
  const shows = (tag) => said(tag) || tag.matches("input:not([type=range]), select, textarea");
  const found = tags.filter((tag) => shows(tag) && faint(tag)).map((tag) => `faint: ${tag.outerHTML.slice(0, 80)}`);
  const controls = tags.filter((tag) => tag.matches("button, input, select, textarea, summary"));
  for (const tag of controls) {
    const { width, height } = (tag.closest("label") ?? tag).getBoundingClientRect();
    if (Math.min(width, height) < 24) found.push(`small: ${tag.outerHTML.slice(0, 80)}`);
    const labels = [...(tag.labels ?? [])].map((label) => label.textContent);
    const names = [tag.ariaLabel, tag.title, tag.textContent, ...labels];
    if (!names.some((name) => name?.trim())) found.push(`nameless: ${tag.outerHTML.slice(0, 80)}`);
  }
  const wide = document.documentElement.scrollWidth - innerWidth;
  return [...found, ...(wide > 0 ? [`${wide} pixels too wide`] : [])];
}"""


def hard_to_read(page: Page) -> list[str]:
    """Return what of a page is faint, small or nameless, in light or in dark, and if it is wider than a phone."""
    page.set_viewport_size({"width": 390, "height": 844})
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {each}" for each in page.evaluate(READS)]
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 800})
    return found


def sources() -> Iterator[str]:
    """Yield the lines that make each widget of each page."""
    for path in NOTEBOOKS:
        for html in site.shown(site.prepare(path.stem, notebooks.read(path))):
            yield from (tag["data-source"] for tag in BeautifulSoup(html, "html.parser")(class_="live"))


STATES = """
import json, sys

TEXTS = ["kvm_page_fault: vcpu 1 rip 0x10 address 0xfee000b0 error_code 0x683", "good morning"]

def settings(control):
    match type(control).__name__:
        case "Dropdown" | "Select":
            yield from (("index", n) for n in (len(control.options) - 1, len(control.options) // 2, 0))
        case "Checkbox":
            yield from (("value", not control.value), ("value", control.value))
        case "BitGrid":
            yield from (("number", control.number ^ 1 << bit) for bit in (49, 3, 63))
        case "Place":
            yield from (("value", n) for n in (control.max, 1, (control.max + 1) // 2))
        case "Text":
            yield from (("value", text) for text in ("0x2000000000007", "no such thing", ""))
        case "Textarea":
            yield from (("value", text) for text in TEXTS)
        case "Button":
            yield "click", None

def states(source):
    *lines, last = source.split("\\n")
    scope = {}
    exec("\\n".join(lines), scope)
    widget = eval(last, scope)
    yield ["as it stands", widget.static().html, widget.status.value]
    for name, control in widget.controls.items():
        for what, value in settings(control):
            control.click() if what == "click" else setattr(control, what, value)
            yield [f"{name}: {what} {value}", widget.static().html, widget.status.value]
"""
"""What goes through the controls of a widget, one by one, and tells what each setting leads to."""

STILL = (
    """
import sys
for name in ("matplotlib", "numba", "numpy", "pandas", "pyarrow", "z3"):
    sys.modules[name] = None
"""
    + STATES
    + "json.dump([list(states(source)) for source in json.load(sys.stdin)], sys.stdout)"
)


def stills(sources: list[str], root: Path) -> list[list[list[str]]]:
    """Run such lines in a Python here that has none of the libraries that a page has not; return all STATES."""
    done = subprocess.run(
        [sys.executable, "-c", STILL],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    return json.loads(done.stdout)


RUN_CASES = """
import json
from kvm_pf.conformance.cases import read_cases, run_case
json.dumps([run_case(row) for row in read_cases()])
"""


def test_from_disk_every_widget_and_every_case_is_the_same_to_the_byte(browser, folder, root):
    page, complaints = opened(browser, (folder / f"{SHOWN[0]}.html").as_uri(), offline=True)
    alive(page)
    widgets = list(sources())
    assert len(widgets) == sum(path.read_text().count("), as it stands") for path in NOTEBOOKS) > 0
    compared = 0
    for source, expected in zip(widgets, stills(widgets, root), strict=True):
        code = f"{STATES}\njson.dumps(list(states({source!r})))"
        made = json.loads(page.evaluate("code => kvmPf.py.runPython(code)", code))
        for state, other in zip(made, expected, strict=True):
            assert state == other, f"{source}\n{other[0]}"
        compared += len(made)
    assert compared > 10 * len(widgets)
    cases = json.loads(page.evaluate("code => kvmPf.py.runPython(code)", RUN_CASES))
    assert len(cases) > 500
    assert cases == [run_case(row) for row in read_cases()]
    assert complaints == []
    page.context.close()


def test_from_a_folder_of_a_host_a_widget_answers_a_click(browser, address):
    page, complaints = opened(browser, f"{address}/01_the_bits.html")
    alive(page)
    code = page.get_by_label("code", exact=True)
    expect(code).to_have_value("0x2000100000006")
    code.focus()
    expect(code).to_have_css("outline-style", "solid")
    code.fill("0x6")
    code.press("Enter")
    expect(page.locator(".live").first).to_contain_text("WRITE|USER")
    expect(page.get_by_role("status")).to_contain_text("0x6 = WRITE|USER; what each revision does")
    assert hard_to_read(page) == []
    assert complaints == []
    page.context.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The one file with all widgets, and the solver beside it."""
    path = tmp_path_factory.mktemp("pocket") / "kvm_pf.html"
    try:
        pocket.write(path)
    except Unfetched as error:
        pytest.skip(f"no live widgets: {error}")
    return path


DIFF = """\
--- a/arch/x86/kvm/mmu/mmu.c
+++ b/arch/x86/kvm/mmu/mmu.c
@@ -1,1 +1,1 @@ int kvm_mmu_page_fault(void)
-\told = 1;
+\tnew = 2;
"""


def test_the_one_file_runs_every_widget_from_disk_and_asks_the_solver_if_wished(browser, file):
    page, complaints = opened(browser, file.as_uri(), offline=True)

    def section(name: str) -> Locator:
        page.locator(f"nav a[href='#{name}']").click()
        found = page.locator(f"section#{name}")
        expect(found).to_have_attribute("data-state", "live", timeout=1000 * SECONDS)
        return found

    assert section("code").get_by_label("code", exact=True).input_value() == "0x2000100000006"
    for each in pocket.SECTIONS:
        assert section(each.name).locator(".kvm-pf").count() >= 1, each.name
        assert hard_to_read(page) == [], each.name
    assert page.evaluate("document.documentElement.scrollWidth") == 1280

    patch = section("patch")
    dropped = page.evaluate_handle(
        "text => { const all = new DataTransfer(); all.items.add(new File([text], 'a.patch')); return all }",
        DIFF,
    )
    patch.locator("textarea").dispatch_event("drop", {"dataTransfer": dropped})
    expect(patch).to_contain_text("another patch")
    expect(patch.get_by_role("table", name="what it touches")).to_contain_text("arch/x86/kvm/mmu/mmu.c")

    turn = section("turn")
    turn.get_by_label("the step").fill("def sanitize(error_code):\n    return error_code, 0\n")
    turn.get_by_role("button", name="run", exact=True).click()
    expect(turn).to_contain_text("cases notice; no claim was asked")
    expect(turn).to_contain_text("fault-private-is-a-bool")

    claims = section("claims")
    claims.get_by_label("of", exact=True).select_option("before")
    ask = claims.get_by_role("button", name="ask the solver")
    ask.click()
    expect(claims.get_by_role("alert")).to_contain_text("no solver here")
    claims.get_by_role("button", name="load the solver").click()
    expect(claims.get_by_role("button", name="the solver is here")).to_be_visible(timeout=1000 * SECONDS)
    ask.click()
    expect(claims).to_contain_text("before: fails (refuted, run again)", timeout=1000 * SECONDS)
    expect(claims).to_contain_text("RSVD")
    assert complaints == []
    page.context.close()


def test_every_still_page_fits_a_phone_and_a_laptop_reads_in_light_and_in_dark_and_prints_on_white(
    browser, tmp_path
):
    site.write([site.prepare(path.stem, notebooks.read(path)) for path in NOTEBOOKS], tmp_path)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    found, complaints = {}, []
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    for path in sorted(tmp_path.glob("*.html")):
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        found[path.name] = hard_to_read(page) + [f"{wide} pixels on a laptop"] * (wide != 1280)
    assert complaints == []
    assert len(found) == len(NOTEBOOKS)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    page.goto((tmp_path / "01_the_bits.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.emulate_media(media="screen", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.set_content(
        "<body style='background: #fff; color: #777'><p style='width: 400px'>faint and wide<input size=1>"
    )
    wrong = [each.split(":")[1].strip() for each in hard_to_read(page)]
    assert wrong == ["faint", "small", "nameless", "18 pixels too wide"] * 2
    page.close()


@pytest.mark.parametrize(
    "settings", [{"java_script_enabled": False}, {}], ids=["no script", "no WebAssembly"]
)
def test_without_the_means_the_still_page_stands(browser, folder, settings):
    page = browser.new_context(**settings).new_page()
    page.add_init_script("delete window.WebAssembly")
    page.goto((folder / "01_the_bits.html").as_uri())
    page.wait_for_timeout(300)
    assert page.locator(".live").count() == page.locator(".live:not([data-state])").count() > 0
    expect(page.locator(".live").first).to_contain_text("what each revision does with it")
    page.context.close()


@pytest.mark.parametrize(
    ("script", "why"),
    [(None, "app.zip.js did not load"), ('kvmPf.part("app.zip", "H4sIAAAA")', "app.zip.js is damaged")],
    ids=["missing", "damaged"],
)
def test_a_page_says_why_its_widgets_stand_still(browser, folder, script, why):
    page = browser.new_context().new_page()
    answer = (lambda route: route.abort()) if script is None else (lambda route: route.fulfill(body=script))
    page.route("**/live/app.zip.js", answer)
    page.goto((folder / "01_the_bits.html").as_uri())
    expect(page.get_by_role("status")).to_contain_text(why, timeout=1000 * SECONDS)
    expect(page.locator(".live").first).to_contain_text("what each revision does with it")
    page.context.close()
