# SPDX-License-Identifier: GPL-2.0-only
"""Compile what a page imports at its start; run by compile.mjs, in the very Python that will run the page.

Reads /app.zip, which is unpacked in /app already; writes /made/app.zip and /made/library.zip.  A module of a library
is replaced by its compiled form; one of the project keeps its source beside it, for it reads that.
"""

import os
import sys
import zipfile
from importlib import import_module
from py_compile import PycInvalidationMode, compile

STAMP = (1980, 1, 1, 0, 0, 0)
LIBRARY = next(path for path in sys.path if path.endswith(".zip"))


def compiled(name: str, source: bytes, place: str) -> bytes:
    """Return a module compiled; it says of itself that it came from `place`."""
    with open("/made/module.py", "wb") as file:
        file.write(source)
    path = compile(
        "/made/module.py", "/made/module.pyc", f"{place}/{name}", True, -1, PycInvalidationMode.UNCHECKED_HASH
    )
    with open(path, "rb") as file:
        return file.read()


def rewritten(old: str, new: str, place: str, used: set[str], kept: str = "//") -> None:
    """Write an archive anew, with the modules in `used` compiled; those whose name begins with `kept` stay, too."""
    with zipfile.ZipFile(old) as archive, zipfile.ZipFile(new, "w") as out:
        for name in archive.namelist():
            content, stays = archive.read(name), True
            if f"{place}/{name}" in used:
                stays = name.startswith(kept)
                folder, file = os.path.split(name)
                cache = f"__pycache__/{file[:-3]}.{sys.implementation.cache_tag}.pyc"
                other = os.path.join(folder, cache) if stays else f"{name}c"
                out.writestr(zipfile.ZipInfo(other, STAMP), compiled(name, content, place))
            if stays:
                out.writestr(zipfile.ZipInfo(name, STAMP), content)


os.makedirs("/made")
sys.path.insert(0, "/app")
sys.dont_write_bytecode = True
import_module("bridge").sink = lambda *_: None
import_module("cells")
widgets = import_module("kvm_pf.show.widgets")
for name in widgets.__all__:
    getattr(widgets, name)
widgets.error_code_explorer(0)
used = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
rewritten("/app.zip", "/made/app.zip", "/app", used, "kvm_pf/")
rewritten(LIBRARY, "/made/library.zip", LIBRARY, used)
