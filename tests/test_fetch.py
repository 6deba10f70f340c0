# SPDX-License-Identifier: GPL-2.0-only
"""What the live pages are made of is fetched by name and taken by its hash, or not at all."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from tools.live import build, licences
from tools.live import fetch as fetching
from tools.live.fetch import PARTS, Part, Unfetched, fetch, parts

GOOD = b"the right file"
PART = Part("pyodide", "Python", "npm", "1.0", hashlib.sha256(GOOD).hexdigest(), "MPL-2.0")
WHEEL = PART._replace(name="z3-solver", registry="pypi", platform="wasm32")


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that would be run; each writes GOOD into the folder that it names."""
    run = []

    def command(words: list[str]) -> None:
        run.append(words)
        place = next(Path(word) for word in words if Path(word).is_dir())
        (place / "file").write_bytes(GOOD)

    monkeypatch.setattr(fetching, "_run", command)
    monkeypatch.setattr(fetching.shutil, "which", lambda name: name)
    return run


@pytest.mark.parametrize(("part", "client"), [(PART, ["npm", "pack"]), (WHEEL, ["pip", "download"])])
def test_it_is_fetched_once(part, client, commands, tmp_path):
    first = fetch(part, tmp_path)
    assert first.read_bytes() == GOOD
    assert fetch(part, tmp_path) == first
    (command,) = commands
    assert set(client) < set(command)


def test_another_file_is_refused_each_time(commands, tmp_path):
    other = PART._replace(sha256="0" * 64)
    for _ in range(2):
        with pytest.raises(Unfetched, match="is not the file"):
            fetch(other, tmp_path)
    assert len(commands) == 2


def test_a_file_that_was_damaged_since_is_fetched_anew(commands, tmp_path):
    fetch(PART, tmp_path).write_bytes(b"half")
    assert fetch(PART, tmp_path).read_bytes() == GOOD
    assert len(commands) == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no npm"),
        subprocess.CalledProcessError(1, "npm", stderr="warning\nno such version\n"),
        subprocess.TimeoutExpired("npm", 300),
    ],
)
def test_a_machine_without_the_means_is_told_why(error, monkeypatch, tmp_path):
    def fail(_):
        raise error

    monkeypatch.setattr(fetching, "_run", fail)
    with pytest.raises(Unfetched, match=r"pyodide 1\.0 could not be fetched \(.+\)"):
        fetch(PART, tmp_path)


def test_the_list_names_versions_hashes_and_licences_and_no_host():
    for part in parts().values():
        assert re.fullmatch("[0-9a-f]{64}", part.sha256)
        assert re.fullmatch(r"[\d.]+", part.version)
        assert part.licence
    assert "://" not in PARTS.read_text()


def test_pages_do_without_the_solver_where_it_cannot_be_had(monkeypatch, tmp_path, capsys):
    def unfetched():
        raise Unfetched("z3-solver could not be fetched")

    monkeypatch.setattr(build, "solver", unfetched)
    build.add_solver(tmp_path)
    assert capsys.readouterr().out == "without the solver: z3-solver could not be fetched\n"
    assert list(tmp_path.iterdir()) == []


def test_everything_that_runs_in_a_page_is_named_with_its_licence():
    rows = [
        [cell.get_text() for cell in row("td")]
        for row in BeautifulSoup(licences.table(), "html.parser")("tr")
    ]
    told = {row[0].partition(" (")[0]: row[2] for row in rows if row}
    assert told["pyodide"] == "MPL-2.0"
    assert told["jquery"] == "MIT"
    assert {*parts(), *build.LIBRARIES, *(package for package, _ in build.FRONT.values()), "kvm_pf"} <= set(
        told
    )
    assert all(told.values())
