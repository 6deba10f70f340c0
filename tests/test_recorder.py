# SPDX-License-Identifier: GPL-2.0-only
"""The recorder: of the package sources of a machine, those of one Debian release are taken; apt reads them."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

RECORDER = Path(__file__).parents[1] / "tools" / "recorder" / "record.py"
SPEC = importlib.util.spec_from_file_location("recorder", RECORDER)
recorder = sys.modules["recorder"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recorder)

LINES = """\
# deb http://one.invalid/debian bookworm contrib
deb [signed-by=/keys/a.gpg check-valid-until=no] http://one.invalid/debian bookworm main contrib
deb http://one.invalid/debian-security bookworm-security main # mended
 deb\thttp://one.invalid/debian bookworm-backports main
deb http://one.invalid/debian trixie main
deb http://one.invalid/debian sid main
deb-src http://one.invalid/debian bookworm main
deb cdrom:[Debian GNU/Linux 12 _Bookworm_]/ bookworm main
deb http://tools.invalid/apt tools-bookworm main
deb http://flat.invalid/ ./
"""

FIELDS = """\
# the mirror
Types: deb deb-src
URIs: http://two.invalid/debian
Suites: bookworm trixie
 bookworm-updates sid
# in between
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 bookworm
 -----END PGP PUBLIC KEY BLOCK-----

enabled: no
types: deb
uris: http://off.invalid/debian
suites: bookworm
components: main

Types: deb-src
URIs: http://source.invalid/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://other.invalid/debian
Suites: experimental
Components: main
"""


def machine(folder, monkeypatch, files, release="bookworm"):
    """Make a machine of that release with these package sources, and a recorder on it."""
    (folder / "parts").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    said = f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/parts";\n'
    (folder / "apt.conf").write_text(said)
    monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"VERSION_CODENAME": release})
    return recorder.Scratch(folder / "work")


def read_by_apt(scratch):
    shape = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    said = scratch.apt(
        "apt-get", "indextargets", "--no-release-info", "--format", shape, "Created-By: Packages"
    )
    return set(said.splitlines())


def test_of_lines_the_release_s_own_are_kept_as_they_stand():
    assert recorder.serving(LINES, "bookworm").splitlines() == [
        "deb [signed-by=/keys/a.gpg check-valid-until=no] http://one.invalid/debian bookworm main contrib",
        "deb http://one.invalid/debian-security bookworm-security main # mended",
        " deb\thttp://one.invalid/debian bookworm-backports main",
    ]


def test_of_paragraphs_the_release_s_own_suites_are_kept_with_the_mirror_s_key():
    assert recorder.serving(FIELDS, "bookworm") == (
        "types: deb\nuris: http://two.invalid/debian\nsuites: bookworm bookworm-updates\ncomponents: main\n"
        "signed-by:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n bookworm\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )


@pytest.mark.parametrize("text", [LINES, FIELDS, "", "\n\n", "# deb http://one.invalid/debian buster main\n"])
def test_nothing_is_kept_of_a_release_that_is_not_named(text):
    assert recorder.serving(text, "buster") == ""


needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="apt-get is not there")


@needs_apt
def test_apt_reads_from_both_forms_what_is_of_the_machine_s_release(tmp_path, monkeypatch):
    files = {
        "sources.list": LINES,
        "parts/two.sources": FIELDS,
        "parts/two.list": LINES.replace("one", "three"),
    }
    scratch = machine(tmp_path, monkeypatch, files | {"parts/old.list.save": LINES.replace("one", "old")})
    kept = scratch.choose("")
    assert scratch.release == "bookworm"
    assert "trixie" not in kept
    assert read_by_apt(scratch) == {
        *(
            f"http://{name}.invalid/debian/ bookworm {part}"
            for name in ("one", "three")
            for part in ("main", "contrib")
        ),
        *(f"http://{name}.invalid/debian/ bookworm-backports main" for name in ("one", "three")),
        *(f"http://{name}.invalid/debian-security/ bookworm-security main" for name in ("one", "three")),
        *(f"http://two.invalid/debian/ {suite} main" for suite in ("bookworm", "bookworm-updates")),
    }


@needs_apt
@pytest.mark.parametrize(("asked", "suites"), [("", {"stable", "sid"}), ("stable", {"stable"})])
def test_where_no_source_has_the_machine_s_codename_all_are_taken_or_those_asked_for(
    asked, suites, tmp_path, monkeypatch
):
    lines = "deb http://one.invalid/debian stable main\ndeb http://one.invalid/debian sid main\n"
    scratch = machine(tmp_path, monkeypatch, {"sources.list": lines})
    scratch.choose(asked)
    assert {line.split()[1] for line in read_by_apt(scratch)} == suites


@needs_apt
@pytest.mark.parametrize(
    ("lines", "asked", "said"),
    [
        (LINES, "buster", "no package source is of buster"),
        ("", "", "apt has no package sources"),
        ("deb file:/nowhere bookworm main\n", "", "package lists cannot be fetched"),
    ],
)
def test_sources_that_do_not_serve_are_an_error_at_once(lines, asked, said, tmp_path, monkeypatch, capsys):
    scratch = machine(tmp_path, monkeypatch, {"sources.list": lines})
    with pytest.raises(SystemExit) as ended:
        scratch.update(asked)
    assert ended.value.code == 3
    assert said in capsys.readouterr().err
