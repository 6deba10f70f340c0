# SPDX-License-Identifier: GPL-2.0-only
"""How soon a page of the site is alive in Chromium, and how fast its widgets answer.

Run: python benchmarks/live.py [--runs N].  Each run has a new browser profile, so that nothing is kept from the one
before; every request to anywhere but the site is refused, and counted.  Beside the seconds on the clock stand those
that the processors worked for the browser, all its threads together (on Linux): other programs on the machine do not
lengthen these.
"""

from __future__ import annotations

import functools
import http.server
import platform
import sys
import threading
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import getloadavg, getpid, sysconf
from pathlib import Path
from shutil import which
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # it is run as a file

from playwright.sync_api import Browser, Page, sync_playwright

from kvm_pf.common.cores import cores
from tools import notebooks, site

PAGE = "01_the_bits"

LIMITS = {"first widget": 5.0, "click": 0.15, "verdict": 10.0}
"""Seconds that a person is asked to wait at most."""

CLICK = """async () => {
    const seen = new Promise(done => new MutationObserver(done).observe(
        document.querySelector('.live .kvm-pf-results'), {childList: true, subtree: true, characterData: true}));
    const start = performance.now();
    document.querySelector('.live .kvm-pf-bits button[aria-label^="bit 3"]').click();
    await seen;
    await new Promise(requestAnimationFrame);
    return (performance.now() - start) / 1000;
}"""

VERDICT = """code => {
    const start = performance.now();
    kvmPf.py.runPython(code);
    return (performance.now() - start) / 1000;
}"""

SOLVER = """async () => {
    const start = performance.now();
    await kvmPf.install(kvmPf.py);
    return (performance.now() - start) / 1000;
}"""

JUDGE = """
import kvm_pf
kept = kvm_pf.REVISIONS["posted"].derive("kept", sanitize=lambda error_code: (error_code, 0))
kvm_pf.verdict(kept)
"""

SLOWEST = """
from kvm_pf.show.widgets import your_turn
turn = your_turn("handle_mmio_page_fault")
text = turn.controls["text"]
text.value = text.value.replace("if reserved", "if not reserved")
turn.run()
assert turn.verdict.cases
"""
"""A step behind which the solver has most to think about, judged as the widget does."""

Times = dict[str, list[float]]


@contextmanager
def host(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def page(browser: Browser, own: str, refused: list[str]) -> Iterator[Page]:
    """Yield a page in a new profile; what it asks for elsewhere is refused and noted."""

    def refuse(route: Any) -> None:
        refused.append(route.request.url)
        route.abort()

    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(120_000)
    made = context.new_page()
    made.route(lambda url: not url.startswith((own, "blob:", "data:")), refuse)
    yield made
    context.close()


seen: dict[int, tuple[int, float]] = {}
"""Of each process that was seen: its parent, and the seconds that it had worked when it was last seen."""


def processor_seconds() -> float:
    """Return how long the processors have worked for the programs that this one began, and for theirs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            seen[int(path.parent.name)] = int(fields[1]), ticks / sysconf("SC_CLK_TCK")

    def is_ours(process: int) -> bool:
        while process in seen and process != getpid():
            process = seen[process][0]
        return process == getpid()

    return sum(seconds for process, (_, seconds) in seen.items() if process != getpid() and is_ours(process))


def measure(page: Page, address: str, times: Times, worked: Times) -> None:
    """Open the page, wait for its first widget, click, judge a change; note the seconds of each."""

    def note(what: str, act: Callable[[], float]) -> None:
        before = processor_seconds()
        times.setdefault(what, []).append(act())
        worked.setdefault(what, []).append(processor_seconds() - before)

    def first() -> float:
        page.goto(f"{address}/{PAGE}.html", wait_until="commit")
        page.wait_for_selector(".live[data-state=live]")
        return float(page.evaluate("performance.now()")) / 1000

    note("first widget", first)
    page.wait_for_function("() => [...document.querySelectorAll('.live')].every(e => e.dataset.state)")
    note("click", lambda: median(page.evaluate(CLICK) for _ in range(10)))
    note("verdict of the cases", lambda: page.evaluate(VERDICT, JUDGE))
    page.evaluate("address => kvmPf.script(address)", f"{address}/live/solver.js")
    note("the solver loads", lambda: page.evaluate(SOLVER))
    note("verdict with claims", lambda: page.evaluate(VERDICT, JUDGE))
    note("verdict, slowest step", lambda: page.evaluate(VERDICT, SLOWEST))


def machine() -> str:
    """Name this machine's processor and how many of its cores may be used."""
    model = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.is_file():
        lines = about.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return f"{model}, {cores()} cores"


def main() -> None:
    """Print a line for each thing that was measured, from a host and from disk."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        pages = [site.prepare(PAGE, notebooks.read(notebooks.FOLDER / f"{PAGE}.ipynb"))]
        site.write(pages, folder, *site.bring_to_life(pages, folder))
        chromium = which("chromium") or which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        print(f"Chromium {browser.version}; {machine()}; load {getloadavg()[0]:.1f}")
        print(f"median of {runs} runs, in seconds on the clock and of the processors' work")
        with host(folder) as address:
            for title, own in (("from a host", address), ("from disk", folder.as_uri())):
                times, worked, refused = {}, {}, []
                for _ in range(runs):
                    with page(browser, own, refused) as opened:
                        measure(opened, own, times, worked)
                print(f"{title}: {len(refused)} requests elsewhere")
                for what, seconds in times.items():
                    limit = next((value for key, value in LIMITS.items() if what.startswith(key)), None)
                    late = f"  over {limit}" if limit and median(seconds) > limit else ""
                    work = median(worked[what])
                    print(f"  {what:<24}{median(seconds):8.3f}{work:9.2f}{late}")
        browser.close()


if __name__ == "__main__":
    main()
