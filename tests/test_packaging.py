# SPDX-License-Identifier: GPL-2.0-only
"""The files that describe the project agree with each other and hold nothing of one machine."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser

import pytest
import yaml
from packaging.requirements import Requirement

from tools.notebooks import MACHINE_PATH

INDEX_NAMES = {
    "IPython": "ipython",
    "bs4": "beautifulsoup4",
    "dask": "distributed",  # which requires it, in its own version
    "yaml": "pyyaml",
    "z3": "z3-solver",
}
CONDA_NAMES = {"matplotlib": "matplotlib-base", "playwright": "playwright-python"}
RUN_AS_TOOLS = {
    "hatchling": "hatchling.build",
    "jupyterlab": "$(BIN)/jupyter lab",
    "mypy": "$(BIN)/mypy",
    "pandas-stubs": "strict = true",
    "pytest-cov": "--cov",
    "pytest-xdist": "-n 2",
    "ruff": "$(BIN)/ruff",
    "uv": "$(BIN)/uv",
    "vulture": "$(BIN)/vulture",
}
"""What is declared to be run, not imported; and the words that run it."""

IF_THERE = {"duckdb", "polars"}
"""What a benchmark compares with, if it is installed."""

IN_THE_PAGE = "tools/live/page"
"""What runs in a reader's browser, where there are other packages."""

REGISTRIES = r"pypi\.org|pythonhoste[d]|npmj[s]|debian\.org|anaconda\.(?:org|com)|crates\.io|/simpl[e]/"
ENTRY = re.compile(
    r"^([a-z0-9.-]+)==(\S+)(?: ; .+?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def declared(project):
    """Every package that the project names itself, to run or to test."""
    return [Requirement(r) for r in project["project"]["dependencies"] + project["dependency-groups"]["dev"]]


@pytest.fixture(scope="module")
def lock(root):
    return (root / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def files(root):
    """Every file of the repository, also those not yet committed."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := root / name).is_file()]


def test_conda_gets_the_same_packages_and_floors(root, project, declared):
    conda = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    wanted = {CONDA_NAMES.get(r.name, r.name) + str(r.specifier) for r in declared}
    wanted |= {"python" + project["project"]["requires-python"], "pip"}
    assert {line for line in conda if isinstance(line, str)} == wanted
    assert [line for line in conda if not isinstance(line, str)] == [{"pip": ["--editable ."]}]


def imported_by(root, *folders):
    """The packages that the code in `folders` imports, at once or later, as an index names them."""
    paths = [
        p for folder in folders for p in (root / folder).rglob("*.py") if IN_THE_PAGE not in p.as_posix()
    ]
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    ours = {"kvm_pf", "tests", "tools", *(path.stem for path in paths)}
    return {INDEX_NAMES.get(name, name) for name in names - ours - IF_THERE - set(sys.stdlib_module_names)}


def test_the_package_imports_what_it_declares_and_declares_what_it_imports(root, project):
    wanted = {Requirement(r).name for r in project["project"]["dependencies"]}
    extra = {Requirement(r).name for r in project["project"]["optional-dependencies"]["dask"]}
    assert imported_by(root, "kvm_pf") == wanted | extra


def test_tests_and_tools_import_what_is_declared_and_nothing_declared_is_idle(root, project, declared):
    imported = imported_by(root, "kvm_pf", "tests", "tools", "benchmarks", "notebooks")
    assert imported | set(RUN_AS_TOOLS) == {r.name for r in declared}
    said = (root / "Makefile").read_text() + (root / "pyproject.toml").read_text()
    assert [name for name, words in RUN_AS_TOOLS.items() if words not in said] == []


def test_the_lock_pins_every_line_with_a_hash(lock):
    code = re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE)
    assert ENTRY.sub("", code).strip() == ""


def test_the_lock_holds_what_is_declared(lock, declared):
    pinned = {name: version for name, version, _ in ENTRY.findall(lock)}
    allowed = {r.name: r.name in pinned and r.specifier.contains(pinned[r.name]) for r in declared}
    assert all(allowed.values()), [name for name, good in allowed.items() if not good]


def test_the_lock_leaves_out_what_makes_jupyter_slow_to_start(lock):
    assert "\nrfc3987-syntax==" not in lock


def test_the_lock_names_no_place(lock):
    assert not re.search(r"://|file:| @ |index-url|find-links", lock)


def test_no_file_names_a_registry_or_a_machine_path(root, files):
    wrong = re.compile(f"{REGISTRIES}|{MACHINE_PATH}")
    found = {
        p.relative_to(root): m.group() for p in files if (m := wrong.search(p.read_bytes().decode("latin-1")))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "https://pypi" + ".org/project",
        "files.python" + "hosted.org",
        "see /" + "tmp/x.py",
        "'/" + "root/.cache'",
        "file:///" + "home/me/x",
        "/" + "work/main",
    ],
)
def test_that_search_can_fail(line):
    assert re.search(f"{REGISTRIES}|{MACHINE_PATH}", line)


@pytest.mark.parametrize("line", ["x/tmp/y", "iVBOR/opt/w", "tools and /dev/kvm", "a pypi name"])
def test_that_search_does_not_cry_wolf(line):
    assert not re.search(f"{REGISTRIES}|{MACHINE_PATH}", line)


def test_every_source_file_states_its_licence(root, files):
    sources = [p for p in files if p.suffix in {".py", ".yml", ".toml"} or p.name in {"Makefile", "run"}]
    unmarked = [
        p.relative_to(root)
        for p in sources
        if "SPDX-License-Identifier: GPL-2.0-only" not in p.read_text()[:200]
    ]
    assert not unmarked


def test_make_help_lists_every_target(root):
    phony = re.search(r"^\.PHONY: (.+)$", (root / "Makefile").read_text(), re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"^  make ([\w-]+)", shown, re.MULTILINE)) == sorted(phony)


def test_ci_runs_make_test(root):
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("\nmake test")


def test_the_wheel_is_complete_and_finds_its_data(root, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=root, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    data = {
        f"kvm_pf/_data/{p.relative_to(root / 'data').as_posix()}"
        for p in (root / "data").rglob("*")
        if p.is_file()
    }
    code = {p.relative_to(root).as_posix() for p in (root / "kvm_pf").rglob("*.py")}
    assert data | code <= names
    assert not [name for name in names if not name.startswith(("kvm_pf/", "kvm_pf-"))]
    points = next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    assert "kvm-pf = kvm_pf.cli:script" in points
    described = BytesParser().parsebytes(next((tmp_path / "site").glob("*.dist-info/METADATA")).read_bytes())
    for field in ("Author", "Summary", "Keywords", "License-Expression", "Requires-Python"):
        assert described[field], field
    assert {url.partition(", ")[0] for url in described.get_all("Project-URL")} == {"The patch", "The kernel"}
    assert {f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13, 14)} <= {
        *described.get_all("Classifier")
    }
    assert "# kvm_pf" in described.get_payload()
    ask = "from kvm_pf.common.paths import data_dir; print(data_dir())"
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path / "site")}, "text": True}
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True, **run).stdout
    assert answer.strip() == str(tmp_path / "site" / "kvm_pf" / "_data")


def test_a_checkout_finds_its_data(root):
    from kvm_pf.common.paths import data_dir

    assert data_dir() == root / "data"
