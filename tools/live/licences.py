# SPDX-License-Identifier: GPL-2.0-only
"""Name everything that runs in a live page, and its licence."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from kvm_pf.show.markup import Html, element, join
from kvm_pf.show.markup import table as html_table
from tools.live import build
from tools.live.fetch import parts

FRONT = "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager/static/third-party-licenses.json"
"""The list, in the wheel jupyterlab-widgets, of what the front end of ipywidgets is made of."""


class Named(NamedTuple):
    """A piece of software by name, version and licence."""

    name: str
    version: str
    licence: str


def python() -> list[Named]:
    """List the Python packages that are taken along, and those whose scripts are."""
    names = sorted({*build.LIBRARIES, *(name for name, _ in build.FRONT.values())})
    return [Named(name, distribution(name).version, _licence(name)) for name in names]


def _licence(name: str) -> str:
    about = distribution(name).metadata
    if about.get("License-Expression"):  # [] raises in importlib_metadata, which may have taken over
        return str(about["License-Expression"])
    kinds = [
        each.rpartition(" :: ")[2] for each in about.get_all("Classifier", []) if each.startswith("License")
    ]
    return ", ".join(kinds) or str(about.get("License") or "see the package").splitlines()[0]


def front() -> list[Named]:
    """List what the front end of ipywidgets is made of, by its own list."""
    files = distribution("jupyterlab-widgets").files or ()
    path = next(Path(str(file.locate())) for file in files if str(file).endswith(FRONT))
    listed = json.loads(path.read_text(encoding="utf-8"))["packages"]
    return [Named(each["name"], each["versionInfo"], each["licenseId"]) for each in listed]


def table() -> Html:
    """Return it all as HTML."""
    fetched = [Named(f"{each.name} ({each.what})", each.version, each.licence) for each in parts().values()]
    own = [Named("kvm_pf (this project)", distribution("kvm-pf").version, "GPL-2.0-only")]
    head = ("what", "version", "licence")
    return join(
        [
            html_table("what runs here", head, [*own, *fetched, *python()]),
            html_table("in the front end of ipywidgets", head, front()),
            element("p", "Pyodide holds CPython (PSF-2.0) and its libraries, compiled by Emscripten (MIT)."),
        ]
    )
